//! Step 7 of RFC 3261 section 10.3: what a REGISTER will change, or why it may not. Nothing is
//! changed here, so that a request that fails in its last contact has changed nothing.
//!
//! A contact is the same as one that is there when their URIs are (RFC 3261 section 19.1.4). With
//! outbound (RFC 5626 section 6) it is told by its instance and reg-id instead, whatever its URI.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::address::same_uri;
use super::bindings::Entry;
use super::contact::{Contact, Wish};
use super::path::{Path, lists};
use super::{Binding, Limits, Origin, Refusal};
use crate::hop::Hop;
use crate::message::{HeaderName, Message, is_sips};

/// One binding's change.
#[derive(Debug)]
pub(super) enum Change {
    Add(Binding),
    Refresh(u64, Binding),
    Remove(u64),
}

/// What a REGISTER changes.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) changes: Vec<Change>,
    /// The bindings are told apart by instance and reg-id, and the answer says so.
    pub(super) outbound: bool,
}

/// What each binding that a REGISTER makes has from it.
struct Register<'a> {
    call_id: &'a [u8],
    cseq: u32,
    path: Path,
    hop: &'a Hop,
    now: Instant,
    current: &'a [Entry],
    outbound: bool,
}

impl Update {
    pub(super) fn plan(
        request: &Message,
        current: &[Entry],
        hop: &Hop,
        limits: &Limits,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let call_id = request
            .call_id()
            .map_err(|_| Refusal::Malformed("Bad Call-ID"))?;
        let (cseq, _) = request.cseq().map_err(|_| Refusal::Malformed("Bad CSeq"))?;
        let path = Path::of(request)?;
        if !path.is_empty()
            && !limits.path_without_support
            && !lists(request, HeaderName::Supported, "path")
        {
            return Err(Refusal::PathUnsupported);
        }
        let wish = Wish::of(request, limits)?;
        check_schemes(request, &path, &wish)?;
        let mut register = Register {
            call_id,
            cseq,
            path,
            hop,
            now,
            current,
            outbound: false,
        };
        register.outbound = register.is_outbound(request, &wish)?;
        let changes = match wish {
            Wish::Fetch => Vec::new(),
            Wish::RemoveAll => register.remove_all()?,
            Wish::Update(contacts) => register.apply(last_of_each(contacts, register.outbound))?,
        };
        Ok(Self {
            changes,
            outbound: register.outbound,
        })
    }
}

impl Register<'_> {
    /// Whether reg-id means something here (RFC 5626 section 6): the user agent knows of outbound,
    /// and whoever it talks to directly, we or the first proxy, keeps its flow.
    fn is_outbound(&self, request: &Message, wish: &Wish) -> Result<bool, Refusal> {
        let Wish::Update(contacts) = wish else {
            return Ok(false);
        };
        let asked = contacts.iter().any(|contact| contact.reg_id != 0);
        if !asked || !lists(request, HeaderName::Supported, "outbound") {
            return Ok(false);
        }
        if contacts
            .iter()
            .filter(|contact| contact.expires_s > 0)
            .count()
            > 1
        {
            return Err(Refusal::Malformed("One Contact With reg-id"));
        }
        let direct = !request.has_several_vias();
        if direct || self.path.first_hop_keeps_flow() {
            Ok(true)
        } else {
            Err(Refusal::FirstHopLacksOutbound)
        }
    }

    fn remove_all(&self) -> Result<Vec<Change>, Refusal> {
        let remove = |entry: &Entry| {
            self.check_order(&entry.binding)?;
            Ok(Change::Remove(entry.id))
        };
        self.current.iter().map(remove).collect()
    }

    fn apply(&self, contacts: Vec<Contact>) -> Result<Vec<Change>, Refusal> {
        let mut changes = Vec::with_capacity(contacts.len());
        let mut taken: Vec<u64> = Vec::new();
        for contact in contacts {
            // Sameness is not transitive: two contacts may both be the same as one that is there.
            let same = |entry: &&Entry| {
                self.is_same(&entry.binding, &contact) && !taken.contains(&entry.id)
            };
            let Some(entry) = self.current.iter().find(same) else {
                if contact.expires_s > 0 {
                    changes.push(Change::Add(self.binding(&contact, None)));
                }
                continue;
            };
            self.check_order(&entry.binding)?;
            taken.push(entry.id);
            changes.push(if contact.expires_s == 0 {
                Change::Remove(entry.id)
            } else {
                let binding = self.binding(&contact, Some(&entry.binding));
                Change::Refresh(entry.id, binding)
            });
        }
        Ok(changes)
    }

    fn is_same(&self, binding: &Binding, contact: &Contact) -> bool {
        if self.outbound && contact.reg_id != 0 {
            let instance = &contact.parameters[contact.instance.clone()];
            return binding.reg_id == contact.reg_id && binding.instance == instance;
        }
        binding.reg_id == 0 && same_uri(&binding.contact_uri, &contact.uri)
    }

    /// "If the Call-ID value … does agree, … the CSeq value … higher … Otherwise, the update MUST
    /// be aborted and the request fails."
    fn check_order(&self, binding: &Binding) -> Result<(), Refusal> {
        if binding.call_id == self.call_id && self.cseq <= binding.cseq {
            return Err(Refusal::OutOfOrder);
        }
        Ok(())
    }

    /// The binding of a contact; what is as it was before keeps its memory.
    fn binding(&self, contact: &Contact, before: Option<&Binding>) -> Binding {
        let unchanged = before.filter(|before| {
            before.contact_uri == contact.uri
                && before.parameters == contact.parameters
                && before.call_id == self.call_id
        });
        let [contact_uri, parameters, call_id] = match unchanged {
            Some(before) => {
                [&before.contact_uri, &before.parameters, &before.call_id].map(Clone::clone)
            }
            None => packed([&contact.uri, &contact.parameters, self.call_id]),
        };
        let path = before.filter(|before| before.path == self.path);
        Binding {
            instance: parameters.slice(contact.instance.clone()),
            reg_id: if self.outbound { contact.reg_id } else { 0 },
            contact_uri,
            parameters,
            q_thousandths: contact.q_thousandths,
            registered_at: self.now,
            expires_at: self.now + Duration::from_secs(contact.expires_s.into()),
            call_id,
            cseq: self.cseq,
            flow: self.path.next_hop(self.hop),
            relay: self.hop.relay,
            path: path.map_or_else(|| self.path.clone(), |before| before.path.clone()),
            origin: Origin::default(),
        }
    }
}

/// "A registrar MUST accept a binding to a SIPS Contact header field only if all the appropriate URIs are
/// of the SIPS scheme … the Request-URI and the Contacts and all the Path header fields" (RFC 5630
/// section 5.2). What is removed need not be.
fn check_schemes(request: &Message, path: &Path, wish: &Wish) -> Result<(), Refusal> {
    let Wish::Update(contacts) = wish else {
        return Ok(());
    };
    let mut bound = contacts.iter().filter(|contact| contact.expires_s > 0);
    if !bound.clone().any(|contact| is_sips(&contact.uri)) {
        return Ok(());
    }
    let consistent = is_sips(request.request_uri())
        && bound.all(|contact| is_sips(&contact.uri))
        && path.is_sips();
    if consistent {
        Ok(())
    } else {
        Err(Refusal::Malformed("SIPS Contact Needs SIPS"))
    }
}

/// Three texts that live as long as each other, in one piece of memory.
fn packed(texts: [&[u8]; 3]) -> [Bytes; 3] {
    let mut all = Vec::with_capacity(texts.iter().map(|text| text.len()).sum());
    for text in texts {
        all.extend_from_slice(text);
    }
    let mut rest = Bytes::from(all);
    texts.map(|text| rest.split_to(text.len()))
}

/// A contact that one request names twice counts as it was named last; otherwise the second would
/// be out of order after the first.
fn last_of_each(contacts: Vec<Contact>, outbound: bool) -> Vec<Contact> {
    let same = |a: &Contact, b: &Contact| {
        let by_instance = outbound && a.reg_id != 0 && a.reg_id == b.reg_id;
        if by_instance {
            return a.parameters[a.instance.clone()] == b.parameters[b.instance.clone()];
        }
        same_uri(&a.uri, &b.uri)
    };
    let mut kept: Vec<Contact> = Vec::with_capacity(contacts.len());
    for contact in contacts {
        match kept.iter_mut().find(|other| same(other, &contact)) {
            Some(other) => *other = contact,
            None => kept.push(contact),
        }
    }
    kept
}
