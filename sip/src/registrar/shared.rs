//! Bindings that several concentrators share, each with a whole copy.
//!
//! A concentrator takes REGISTERs and gives each change a place in the order of all ([`Origin`]); what
//! [`Registrar::poll_news`] tells it sends to the others as a record. They give it to
//! [`Registrar::merge`]. Whoever has merged the same records has the same bindings, in whatever order and
//! however often they came.
//!
//! Of each binding, named by [`record::key`], there may be one version for each Call-ID:
//!
//! * Within a Call-ID the user agent's own count decides: the higher epoch, then the higher CSeq; of the
//!   same REGISTER the removal goes before the binding, then the later stamp, then the higher handler. A
//!   clock has no say here.
//! * Among Call-IDs the latest stamp wins; a user agent takes another one when it restarts (RFC 3261
//!   section 10.2.4). A stamp is later than all that its maker knew, whatever the clocks say; only what two
//!   concentrators did without knowing of each other is ordered by their clocks.
//! * A binding that went with its connection keeps its stamp, so it never takes away what its user agent
//!   has registered elsewhere meanwhile.
//!
//! What has lost, was removed or has expired stays known for the longest time that a binding may live:
//! otherwise an old record that comes late would revive it. That is the [`Past`]. It is bounded; when it is
//! full the oldest is forgotten, and counted.
//!
//! A user agent that counts anew within its Call-ID begins a new epoch if its last word is older than
//! [`RESTART`]; before that a lower CSeq is an old request that comes late.
//!
//! One concentrator pings a flow behind a NAT: the one that took its REGISTER, and when that one is gone, the
//! one of those left that a hash of the flow chooses ([`Pingers`]). The answers go to whomever the edges send
//! them, so nobody here can say that a user agent is dead, and no binding ends for want of an answer.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Bound;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;

use super::record::{self, Clock, Record};
use super::update::{Change, Update};
use super::{AddressOfRecord, Binding, Event, Origin, Refusal, Registrar};
use crate::hop::{ConnectionId, Flow};
use crate::message::Message;

/// A request that is older than this is not under way any more (64 * T1, RFC 3261 section 17.1.2.2).
pub const RESTART: Duration = Duration::from_secs(32);
/// Times of one version that differ by no more are the same.
const CLOCKS_AGREE: Duration = Duration::from_secs(2);
/// Call-IDs of one binding that are told apart.
const MAX_VERSIONS: usize = 4;
/// Versions that are forgotten in one turn: whoever drives this has other things to do.
const FORGOTTEN_PER_TURN: usize = 1024;
/// How much longer than a binding may live its end is remembered: for records on their way and clocks that
/// are not quite the same.
const SLACK: Duration = Duration::from_secs(600);

/// Where a version that is over stands among those that are remembered ([`Registrar::removals`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastPlace((Instant, u64));

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// The binding is as it says now.
    Taken,
    /// That was so already.
    Known,
    /// It is older than what is known: the version that is right is this.
    Older(Box<Record>),
    /// It is right and there is no room for it.
    NoRoom,
}

/// What happened to shared bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Records that changed something.
    pub merged: u64,
    /// Records that were known.
    pub known: u64,
    /// Records older than what was known.
    pub older: u64,
    /// Records for which there was no room.
    pub no_room: u64,
    /// Versions that are remembered because they are over or have lost.
    pub past: usize,
    /// Such versions that were forgotten before their time, because there were too many.
    pub forgotten: u64,
}

/// What a registrar that shares its bindings knows besides them.
#[derive(Debug)]
pub(super) struct Sharing {
    id: u16,
    clock: Clock,
    /// Concentrators that are there, in order.
    alive: Vec<u16>,
    past: Past,
    counts: Counts,
}

/// Who pings which flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pingers<'a> {
    id: u16,
    alive: &'a [u16],
}

impl Pingers<'_> {
    /// True where this concentrator pings a flow whose REGISTER that handler took.
    pub(super) fn is_ours(&self, handler: u16, flow: &Flow) -> bool {
        if handler == self.id {
            return true;
        }
        if self.alive.contains(&handler) {
            return false;
        }
        let weight = |id: &u16| {
            let mut hash = DefaultHasher::new();
            flow.hash(&mut hash);
            id.hash(&mut hash);
            (hash.finish(), *id)
        };
        let others = self.alive.iter().filter(|id| **id != self.id);
        let highest = others.map(weight).max();
        highest.is_none_or(|highest| weight(&self.id) > highest)
    }
}

/// One version of a binding.
#[derive(Debug, Clone)]
struct Version {
    binding: Binding,
    removed: bool,
}

impl Version {
    /// The order within a Call-ID.
    fn rank(&self) -> Rank {
        rank(&self.binding, self.removed)
    }

    /// The order of the last versions of all Call-IDs.
    fn order(&self) -> (u64, &[u8]) {
        (self.binding.origin.stamp_ms, &self.binding.call_id)
    }

    fn is_live(&self, now: Instant) -> bool {
        !self.removed && self.binding.expires_at > now
    }
}

/// Epoch, CSeq, whether it is removed, stamp, handler.
type Rank = (u16, u32, bool, u64, u16);

fn rank(binding: &Binding, removed: bool) -> Rank {
    let Origin {
        stamp_ms,
        handler,
        epoch,
    } = binding.origin;
    (epoch, binding.cseq, removed, stamp_ms, handler)
}

/// True where both have the same [`record::key`] under one user.
pub(super) fn same_key(a: &Binding, b: &Binding) -> bool {
    match (a.reg_id, b.reg_id) {
        (0, 0) => a.contact_uri == b.contact_uri,
        (of_a, of_b) => of_a == of_b && a.instance == b.instance,
    }
}

/// The versions of one binding, and whose it is.
type OfKey = (AddressOfRecord, Vec<Version>);

/// Versions that are not, or no longer, bindings.
#[derive(Debug, Default)]
struct Past {
    versions: HashMap<Vec<u8>, OfKey>,
    /// When something of a key is to be forgotten; the number tells apart what is due at once.
    due: BTreeMap<(Instant, u64), Vec<u8>>,
    last: u64,
}

impl Past {
    fn of(&self, key: &[u8]) -> &[Version] {
        self.versions.get(key).map_or(&[], |(_, versions)| versions)
    }

    fn take(&mut self, key: &[u8], call_id: &[u8]) -> Option<Version> {
        let (_, versions) = self.versions.get_mut(key)?;
        let at = versions
            .iter()
            .position(|version| version.binding.call_id == call_id)?;
        let version = versions.swap_remove(at);
        if versions.is_empty() {
            self.versions.remove(key);
        }
        Some(version)
    }

    fn put(&mut self, user: &AddressOfRecord, version: Version, forget_at: Instant) {
        let key = record::key(user, &version.binding);
        self.last += 1;
        self.due.insert((forget_at, self.last), key.clone());
        let Some((_, versions)) = self.versions.get_mut(&key) else {
            // Mostly there is one, and a growing vector would take room for four.
            self.versions.insert(key, (user.clone(), vec![version]));
            return;
        };
        versions.retain(|other| other.binding.call_id != version.binding.call_id);
        versions.push(version);
        if versions.len() > MAX_VERSIONS {
            let oldest = versions.iter().enumerate().min_by(|(_, a), (_, b)| {
                let order = |version: &Version| version.binding.origin.stamp_ms;
                order(a).cmp(&order(b))
            });
            if let Some((at, _)) = oldest {
                versions.swap_remove(at);
            }
        }
    }

    /// Forgets some of what is due by then; `keep` says for how long a version is to be remembered.
    fn forget(&mut self, now: Instant, keep: impl Fn(&Version) -> Instant) {
        for _ in 0..FORGOTTEN_PER_TURN {
            let Some(entry) = self.due.first_entry().filter(|due| due.key().0 <= now) else {
                return;
            };
            let key = entry.remove();
            self.forget_of(&key, |version| keep(version) > now);
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, key)) = self.due.pop_first() {
            self.forget_of(&key, |_| false);
        }
    }

    fn forget_of(&mut self, key: &[u8], keep: impl Fn(&Version) -> bool) {
        if let Some((_, versions)) = self.versions.get_mut(key) {
            versions.retain(keep);
            if versions.is_empty() {
                self.versions.remove(key);
            }
        }
    }
}

impl Sharing {
    pub(super) fn pingers(&self) -> Pingers<'_> {
        Pingers {
            id: self.id,
            alive: &self.alive,
        }
    }
}

impl Registrar {
    /// From now on the bindings are shared, and this concentrator has that number, which is not 0. The
    /// clock is the one that all have in common.
    pub fn share(&mut self, id: u16, clock: Clock) {
        self.bindings.never_give_up();
        self.sharing = Some(Sharing {
            id,
            clock,
            alive: vec![id],
            past: Past::default(),
            counts: Counts::default(),
        });
    }

    /// The common clock is better known now. What this concentrator took since an instant nobody has
    /// heard of, so its stamps can still be put right.
    pub fn set_shared_clock(&mut self, clock: Clock, unheard_since: Option<Instant>) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        sharing.clock = clock;
        let Some(since) = unheard_since else { return };
        for (registered_at, origin) in self.bindings.origins_mut() {
            if origin.handler == sharing.id && registered_at >= since {
                origin.stamp_ms = clock.unix_ms(registered_at);
            }
        }
    }

    /// Which concentrators are there, this one among them or not.
    pub fn set_alive(&mut self, ids: Vec<u16>) {
        if let Some(sharing) = &mut self.sharing {
            sharing.alive = ids;
        }
    }

    /// Takes a record of another concentrator.
    pub fn merge(&mut self, record: Record, now: Instant) -> Merged {
        let Record {
            user,
            binding,
            removed,
        } = record;
        let merged = self.merge_version(&user, Version { binding, removed }, now);
        if let Some(sharing) = &mut self.sharing {
            let counts = &mut sharing.counts;
            match merged {
                Merged::Taken => counts.merged += 1,
                Merged::Known => counts.known += 1,
                Merged::Older(_) => counts.older += 1,
                Merged::NoRoom => counts.no_room += 1,
            }
        }
        merged
    }

    /// Ends the bindings of connections that this concentrator had in an earlier life; `current` is one of
    /// this life.
    pub fn drop_former_connections(&mut self, current: ConnectionId, now: Instant) -> usize {
        let former = |binding: &Binding| {
            binding.flow.connection.is_some_and(|connection| {
                connection.concentrator() == current.concentrator()
                    && !connection.is_of_the_life_of(current)
            })
        };
        let all = self.bindings.iter();
        let gone: Vec<ConnectionId> = all
            .filter(|(_, entry)| former(&entry.binding))
            .filter_map(|(_, entry)| entry.binding.flow.connection)
            .collect();
        for connection in &gone {
            self.connection_closed(*connection, now);
        }
        gone.len()
    }

    pub(super) fn shared_counts(&self) -> Counts {
        let Some(sharing) = &self.sharing else {
            return Counts::default();
        };
        Counts {
            past: sharing.past.due.len(),
            ..sharing.counts
        }
    }

    /// The last word about bindings that are no more, for whoever has lost what was told: of the next `count`
    /// that are remembered behind `after`, those that were removed. Also the place of the last one, and `None`
    /// when there are no more.
    pub fn removals(
        &self,
        after: Option<PastPlace>,
        count: usize,
    ) -> (Vec<Record>, Option<PastPlace>) {
        let Some(sharing) = &self.sharing else {
            return (Vec::new(), None);
        };
        let past = &sharing.past;
        let start = after.map_or(Bound::Unbounded, |PastPlace(place)| Bound::Excluded(place));
        let (mut removals, mut last) = (Vec::new(), None);
        for (place, key) in past.due.range((start, Bound::Unbounded)).take(count) {
            last = Some(PastPlace(*place));
            let Some((user, versions)) = past.versions.get(key) else {
                continue;
            };
            if let Some(version) = newest(versions.iter()).filter(|version| version.removed)
                && self.entry_of(user, &version.binding).is_none()
            {
                removals.push(Record {
                    user: user.clone(),
                    binding: version.binding.clone(),
                    removed: true,
                });
            }
        }
        (removals, last)
    }

    fn entry_of(&self, user: &AddressOfRecord, binding: &Binding) -> Option<&super::Entry> {
        let mut entries = self.bindings.of(user).iter();
        entries.find(|entry| same_key(&entry.binding, binding))
    }

    fn merge_version(&mut self, user: &AddressOfRecord, new: Version, now: Instant) -> Merged {
        let Some(sharing) = &self.sharing else {
            return Merged::NoRoom;
        };
        let key = record::key(user, &new.binding);
        let entry = self.entry_of(user, &new.binding);
        let current = entry.map(|entry| (entry.id, entry.binding.clone()));
        let past = sharing.past.of(&key);
        let call_id = new.binding.call_id.clone();
        let times = (new.binding.registered_at, new.binding.expires_at);
        let known = match &current {
            Some((_, binding)) if binding.call_id == call_id => Some(rank(binding, false)),
            _ => past
                .iter()
                .find(|version| version.binding.call_id == call_id)
                .map(Version::rank),
        };
        let current_version = current.as_ref().map(|(_, binding)| Version {
            binding: binding.clone(),
            removed: false,
        });
        let fresh = known.is_none_or(|known| known < new.rank());
        let others = past.iter().chain(&current_version);
        let others = others.filter(|version| !fresh || version.binding.call_id != call_id);
        let Some(winner) = newest(others.chain(fresh.then_some(&new))).cloned() else {
            return Merged::Known;
        };
        let same = current
            .as_ref()
            .filter(|(_, binding)| binding.call_id == call_id);
        let same = same.map(|(id, binding)| (*id, binding.expires_at));
        let is_right = winner.rank() == new.rank() && winner.binding.call_id == call_id;
        if fresh && !self.settle(user, key, current, new, &winner, now) {
            return Merged::NoRoom;
        }
        match (is_right, fresh) {
            (true, true) => Merged::Taken,
            (true, false) => {
                if let Some(entry) = same {
                    self.follow_the_common_clock(user, entry, times);
                }
                Merged::Known
            }
            (false, _) => Merged::Older(Box::new(Record {
                user: user.clone(),
                binding: winner.binding,
                removed: winner.removed,
            })),
        }
    }

    /// A binding that came from our own file has the times of this machine's clock, which may have been wrong, then
    /// or now; those of the same version among all are right.
    fn follow_the_common_clock(
        &mut self,
        user: &AddressOfRecord,
        (id, before): (u64, Instant),
        (registered_at, expires_at): (Instant, Instant),
    ) {
        let early = expires_at.saturating_duration_since(before);
        let late = before.saturating_duration_since(expires_at);
        if early.max(late) > CLOCKS_AGREE {
            self.bindings.retime(user, id, registered_at, expires_at);
        }
    }

    /// Makes the winner the binding, if it is one, and all other versions the past. False where there is
    /// no room.
    fn settle(
        &mut self,
        user: &AddressOfRecord,
        key: Vec<u8>,
        current: Option<(u64, Binding)>,
        new: Version,
        winner: &Version,
        now: Instant,
    ) -> bool {
        let is_new = winner.binding.call_id == new.binding.call_id;
        let live = winner.is_live(now);
        if live && current.is_none() && self.bindings.len() >= self.limits.max_bindings {
            return false;
        }
        let replaced = new.binding.call_id.clone();
        // What a user agent removes itself has a request of its own.
        let went_with_its_connection = current.as_ref().is_some_and(|(_, before)| {
            before.flow.connection.is_some()
                && new.removed
                && before.call_id == new.binding.call_id
                && before.cseq == new.binding.cseq
        });
        if let Some(sharing) = &mut self.sharing {
            sharing.past.take(&key, &replaced);
            if live {
                sharing.past.take(&key, &winner.binding.call_id);
            }
        }
        if !(is_new && live) && self.is_worth_knowing(&new, now) {
            self.put_past(user, new);
        }
        match (current, live) {
            (Some((_, binding)), true) if binding.call_id == winner.binding.call_id && !is_new => {}
            (Some((id, binding)), true) => {
                if binding.call_id != replaced {
                    self.put_past(
                        user,
                        Version {
                            binding,
                            removed: false,
                        },
                    );
                }
                self.replace(user, id, winner.binding.clone(), true);
            }
            (Some((id, binding)), false) => {
                if binding.call_id != replaced {
                    self.put_past(
                        user,
                        Version {
                            binding,
                            removed: false,
                        },
                    );
                }
                if let Some((user, binding)) = self.bindings.take(id) {
                    if went_with_its_connection {
                        self.note_parting(&user, now);
                    }
                    self.happened(Event::BindingRemoved(user, binding), true);
                }
            }
            (None, true) => {
                let name = self.name(user, &winner.binding);
                self.bindings.add(user, winner.binding.clone(), name);
                let added = Event::BindingAdded(user.clone(), winner.binding.clone());
                self.happened(added, true);
            }
            (None, false) => {}
        }
        true
    }

    /// False for one so old that nothing which is older can be live.
    fn is_worth_knowing(&self, version: &Version, now: Instant) -> bool {
        let clock = self.sharing.as_ref().map(|sharing| sharing.clock);
        clock.is_some_and(|clock| forget_at(version, &clock, self.keep()) > now)
    }

    fn put_past(&mut self, user: &AddressOfRecord, version: Version) {
        let keep = self.keep();
        let max = self.limits.max_bindings;
        if let Some(sharing) = &mut self.sharing {
            let clock = sharing.clock;
            let forget_at = forget_at(&version, &clock, keep);
            sharing.past.put(user, version, forget_at);
            if sharing.past.due.len() > max {
                sharing.past.forget_first();
                sharing.counts.forgotten += 1;
            }
        }
    }

    /// A binding is over; what was known of it stays known for a while.
    pub(super) fn remember(&mut self, user: &AddressOfRecord, binding: &Binding, removed: bool) {
        if self.sharing.is_some() {
            let binding = binding.clone();
            self.put_past(user, Version { binding, removed });
        }
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.limits.max_expires_s.into()) + SLACK
    }

    pub(super) fn forget_past(&mut self, now: Instant) {
        let keep = self.keep();
        if let Some(sharing) = &mut self.sharing {
            let clock = sharing.clock;
            let past = &mut sharing.past;
            past.forget(now, |version| forget_at(version, &clock, keep));
        }
    }

    pub(super) fn next_to_forget(&self) -> Option<Instant> {
        let (due, _) = self.sharing.as_ref()?.past.due.first_key_value()?;
        Some(due.0)
    }

    /// What a REGISTER says must be newer than the end of the same binding that is remembered; unless so
    /// much time has passed that its user agent has begun to count anew.
    pub(super) fn check_past(
        &self,
        aor: &AddressOfRecord,
        update: Update,
        now: Instant,
    ) -> Result<Update, Refusal> {
        let Some(sharing) = &self.sharing else {
            return Ok(update);
        };
        let now_ms = sharing.clock.unix_ms(now);
        let restart = u64::try_from(RESTART.as_millis()).unwrap_or(u64::MAX);
        for change in &update.changes {
            let (Change::Add(binding) | Change::Refresh(_, binding)) = change else {
                continue;
            };
            let past = sharing.past.of(&record::key(aor, binding));
            let same = past
                .iter()
                .find(|version| version.binding.call_id == binding.call_id);
            if let Some(version) = same
                && binding.cseq <= version.binding.cseq
                && now_ms < version.binding.origin.stamp_ms.saturating_add(restart)
            {
                return Err(Refusal::OutOfOrder);
            }
        }
        Ok(update)
    }

    /// Gives a new binding its place in the order.
    pub(super) fn stamp(&mut self, aor: &AddressOfRecord, binding: &mut Binding, now: Instant) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let key = record::key(aor, binding);
        let past = sharing.past.of(&key);
        let stamps = past.iter().map(|version| version.binding.origin.stamp_ms);
        let latest = stamps.max().map_or(0, |latest| latest + 1);
        let same = sharing.past.take(&key, &binding.call_id);
        binding.origin = Origin {
            stamp_ms: sharing.clock.unix_ms(now).max(latest),
            handler: sharing.id,
            epoch: same.map_or(0, |version| epoch_after(&version.binding, binding.cseq)),
        };
    }

    /// The same for one that takes the place of another.
    pub(super) fn stamp_refreshed(
        &mut self,
        aor: &AddressOfRecord,
        id: u64,
        binding: &mut Binding,
        now: Instant,
    ) {
        if self.sharing.is_none() {
            return;
        }
        let mut entries = self.bindings.of(aor).iter();
        let Some(before) = entries.find(|entry| entry.id == id) else {
            return;
        };
        let before = before.binding.clone();
        self.stamp(aor, binding, now);
        if !same_key(&before, binding) {
            // Under that name it is no more.
            return self.put_past(
                aor,
                Version {
                    binding: before,
                    removed: true,
                },
            );
        }
        self.follow(aor, before, binding);
    }

    /// This version is later than the one before, which stays known where it is another Call-ID's.
    fn follow(&mut self, aor: &AddressOfRecord, before: Binding, next: &mut Binding) {
        let origin = &mut next.origin;
        origin.stamp_ms = origin.stamp_ms.max(before.origin.stamp_ms + 1);
        if before.call_id == next.call_id {
            origin.epoch = before.origin.epoch;
        } else {
            self.put_past(
                aor,
                Version {
                    binding: before,
                    removed: false,
                },
            );
        }
    }

    /// The last version of a binding that its user agent has removed by this request.
    pub(super) fn stamp_removed(
        &mut self,
        request: &Message,
        aor: &AddressOfRecord,
        before: Binding,
        now: Instant,
    ) -> Binding {
        if self.sharing.is_none() {
            return before;
        }
        let mut last = before.clone();
        last.call_id = Bytes::copy_from_slice(request.call_id().unwrap_or_default());
        last.cseq = request.cseq().map_or(0, |(number, _)| number);
        last.registered_at = now;
        self.stamp(aor, &mut last, now);
        self.follow(aor, before, &mut last);
        self.put_past(
            aor,
            Version {
                binding: last.clone(),
                removed: true,
            },
        );
        last
    }
}

fn newest<'v>(versions: impl Iterator<Item = &'v Version>) -> Option<&'v Version> {
    versions.max_by(|a, b| a.order().cmp(&b.order()))
}

/// Until then a version must be known: what it is newer than may live as long.
fn forget_at(version: &Version, clock: &Clock, keep: Duration) -> Instant {
    clock.instant(version.binding.origin.stamp_ms) + keep
}

fn epoch_after(last: &Binding, cseq: u32) -> u16 {
    let again = cseq <= last.cseq;
    last.origin.epoch.saturating_add(u16::from(again))
}
