//! Step 7 of RFC 3261 section 10.3, on a copy: what the bindings of a user will be, or why not.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::address::same_uri;
use super::bindings::Entry;
use super::contact::{Contact, Wish};
use super::{Binding, Limits, Refusal};
use crate::hop::Hop;
use crate::message::Message;

/// The bindings that a user shall have, and how they differ from those it has.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) entries: Vec<Entry>,
    pub(super) changes: Vec<(Change, Binding)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Refreshed,
    Removed,
}

/// What each binding that a REGISTER makes has from it.
struct Register<'a> {
    call_id: Bytes,
    cseq: u32,
    hop: &'a Hop,
    now: Instant,
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
        let register = Register {
            call_id: Bytes::copy_from_slice(call_id),
            cseq,
            hop,
            now,
        };
        let mut update = Self {
            entries: current.to_vec(),
            changes: Vec::new(),
        };
        match Wish::of(request, limits)? {
            Wish::Fetch => {}
            Wish::RemoveAll => update.remove_all(&register)?,
            Wish::Update(contacts) => {
                for contact in last_of_each(contacts) {
                    update.apply(contact, &register)?;
                }
            }
        }
        Ok(update)
    }

    fn remove_all(&mut self, register: &Register<'_>) -> Result<(), Refusal> {
        for entry in std::mem::take(&mut self.entries) {
            register.check_order(&entry.binding)?;
            self.changes.push((Change::Removed, entry.binding));
        }
        Ok(())
    }

    fn apply(&mut self, contact: Contact, register: &Register<'_>) -> Result<(), Refusal> {
        let same = |entry: &Entry| same_uri(&entry.binding.contact_uri, &contact.uri);
        let Some(at) = self.entries.iter().position(same) else {
            if contact.expires_s > 0 {
                let binding = register.binding(contact);
                self.changes.push((Change::Added, binding.clone()));
                self.entries.push(Entry { id: None, binding });
            }
            return Ok(());
        };
        register.check_order(&self.entries[at].binding)?;
        if contact.expires_s == 0 {
            let entry = self.entries.remove(at);
            self.changes.push((Change::Removed, entry.binding));
        } else {
            let binding = register.binding(contact);
            self.changes.push((Change::Refreshed, binding.clone()));
            self.entries[at].binding = binding;
        }
        Ok(())
    }
}

impl Register<'_> {
    /// "If the Call-ID value … does agree, … the CSeq value … higher … Otherwise, the update MUST
    /// be aborted and the request fails."
    fn check_order(&self, binding: &Binding) -> Result<(), Refusal> {
        if binding.call_id == self.call_id && self.cseq <= binding.cseq {
            return Err(Refusal::OutOfOrder);
        }
        Ok(())
    }

    fn binding(&self, contact: Contact) -> Binding {
        Binding {
            contact_uri: contact.uri,
            parameters: contact.parameters,
            q_thousandths: contact.q_thousandths,
            expires_at: self.now + Duration::from_secs(contact.expires_s.into()),
            call_id: self.call_id.clone(),
            cseq: self.cseq,
            flow: self.hop.flow,
            relay: self.hop.relay,
        }
    }
}

/// A contact that one request names twice counts as it was named last; otherwise the second would
/// be out of order after the first.
fn last_of_each(contacts: Vec<Contact>) -> Vec<Contact> {
    let mut kept: Vec<Contact> = Vec::with_capacity(contacts.len());
    for contact in contacts {
        match kept
            .iter_mut()
            .find(|other| same_uri(&other.uri, &contact.uri))
        {
            Some(other) => *other = contact,
            None => kept.push(contact),
        }
    }
    kept
}
