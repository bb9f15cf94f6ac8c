//! Which targets are tried at once and which later (RFC 3261 sections 16.6 and 16.7 step 5), and
//! the life of the context that waits for them.
//!
//! Targets of equal q are tried together, the next lower q when all of those have failed, unless
//! the caller cancelled, somebody accepted, or a 6xx said that nobody will. Max-Breadth (RFC 5393
//! section 5) bounds how many branches one request has at a time, here and further on: a group
//! that is too wide is tried in parts.
//!
//! A context outlives its server transaction while a branch is under way: that branch must still
//! be cancelled, and its media given back.

use std::collections::VecDeque;
use std::time::Instant;

use super::forward::{NotStarted, role_of};
use super::media::Media;
use super::{Context, Progress, Proxy, Target};
use crate::cookie::Role;
use crate::hop::Hop;
use crate::message::{HeaderName, Message};
use crate::transaction::ServerId;

/// Max-Breadth of a request that has none (RFC 5393 section 5.3.3).
const MAX_BREADTH: usize = 60;

/// Targets that have not been tried yet.
#[derive(Debug)]
pub(super) struct Rest {
    /// What is copied for them.
    pub(super) inner: Message,
    pub(super) hop: Hop,
    pub(super) groups: VecDeque<Vec<Target>>,
    pub(super) breadth: Breadth,
    /// The failures after which they are tried; `None`: whatever the failure (16.7 step 5).
    pub(super) fail_on: Option<Vec<u16>>,
}

impl Rest {
    /// True where a branch that ended so leaves the next targets to be tried: any failure where
    /// each is another device of the user, only that of the hop itself where each is another way to
    /// the same place (RFC 3263 section 4.3).
    pub(super) fn is_worth_trying_after(&self, status: u16) -> bool {
        let fail_on = self.fail_on.as_ref();
        fail_on.is_none_or(|fail_on| fail_on.contains(&status))
    }
}

/// How many branches a request may still have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Breadth {
    limit: usize,
    stated: bool,
}

impl Breadth {
    /// What a request says; nothing is [`MAX_BREADTH`], and what cannot be read is one.
    pub(super) fn of(request: &Message) -> Self {
        let Some(value) = request.header(HeaderName::MaxBreadth) else {
            return Self {
                limit: MAX_BREADTH,
                stated: false,
            };
        };
        let number = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Self {
            limit: number.unwrap_or(1),
            stated: true,
        }
    }

    /// True where the request may not be forwarded at all.
    pub(super) fn is_exhausted(self) -> bool {
        self.limit == 0
    }

    /// The share of one of several branches; `None` leaves a header out that was not there and
    /// is not needed, as nothing was forked.
    fn share(self, index: usize, branches: usize) -> Option<usize> {
        let share = self.limit / branches + usize::from(index < self.limit % branches);
        (self.stated || branches > 1).then_some(share)
    }
}

/// Targets in the order in which they are tried: the highest q first, the flows of one instance one
/// after the other, and no group wider than allowed.
pub(super) fn groups(mut targets: Vec<Target>, breadth: Breadth) -> VecDeque<Vec<Target>> {
    let order = |target: &Target| (std::cmp::Reverse(target.q_thousandths), target.alternative);
    targets.sort_by_key(order);
    targets
        .chunk_by(|a, b| order(a) == order(b))
        .flat_map(|equal| equal.chunks(breadth.limit.max(1)))
        .map(<[Target]>::to_vec)
        .collect()
}

impl Context {
    /// Drops the messages of a request whose branches have all ended, if it is answered. What is
    /// left passes further 2xx, and keeps retransmissions from being new requests.
    fn let_go(&mut self) {
        if !self.decided {
            return;
        }
        self.request = Message::nothing();
        for branch in &mut self.branches {
            branch.request = Message::nothing();
        }
    }
}

impl Proxy {
    /// Sends the request to the next group of targets; false when there is none that it could be
    /// sent to.
    pub(super) fn next_group(
        &mut self,
        server: ServerId,
        media: &mut dyn Media,
        now: Instant,
    ) -> bool {
        loop {
            let Some(context) = self.contexts.get_mut(&server) else {
                return false;
            };
            let dialog = context.dialog;
            let Some(mut rest) = context.rest.take() else {
                return false;
            };
            let Some(mut group) = rest.groups.pop_front() else {
                return false;
            };
            // "If a request … is forwarded over one flow and fails, another flow to the same
            // instance": not if the instance has answered by itself.
            let reached = |target: &Target| {
                let mut branches = context.branches.iter();
                !target.instance.is_empty()
                    && branches.any(|branch| branch.reached && branch.instance == target.instance)
            };
            group.retain(|target| !reached(target));
            let role = match dialog {
                Some((_, party)) => role_of(party),
                None if group.len() > 1 => Role::Forked,
                None => Role::Initial,
            };
            let mut started = Vec::with_capacity(group.len());
            for (index, target) in group.iter().enumerate() {
                let kind = (role, rest.breadth.share(index, group.len()));
                let branch =
                    self.start_branch(&rest.inner, &rest.hop, target, dialog, kind, media, now);
                match branch {
                    Ok(branch) => started.push(branch),
                    Err(NotStarted::Refused(refusal)) => self.note_refusal(server, refusal),
                    Err(NotStarted::Full) => {}
                }
            }
            let Some(context) = self.contexts.get_mut(&server) else {
                return false;
            };
            if !rest.groups.is_empty() {
                context.rest = Some(rest);
            }
            let any = !started.is_empty();
            for branch in started {
                self.by_client
                    .insert(branch.client, (server, context.branches.len()));
                context.branches.push(branch);
            }
            if any {
                return true;
            }
        }
    }

    /// The server transaction is over. Branches that are still under way have nobody to answer
    /// to: those that ring are cancelled, and the context stays until the last one has ended.
    pub(super) fn server_ended(&mut self, server: ServerId, now: Instant) {
        self.uas.forget(server);
        self.journal_ended(server);
        if self.stop_waiting(server).is_some() {
            return;
        }
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        context.orphan = true;
        self.cancel_all(server, now);
        self.forget_if_done(server);
    }

    /// Forgets a context that nobody waits for.
    pub(super) fn forget_if_done(&mut self, server: ServerId) {
        let Some(context) = self.contexts.get_mut(&server) else {
            return;
        };
        let mut branches = context.branches.iter();
        if !branches.all(|branch| branch.progress == Progress::Done) {
            return;
        }
        if !context.orphan {
            return context.let_go();
        }
        let context = self.contexts.remove(&server);
        for branch in context.into_iter().flat_map(|context| context.branches) {
            self.forget_client(branch.client);
        }
    }
}
