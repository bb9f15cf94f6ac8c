//! What a REGISTER asks for: its Contact values, read once.

use std::ops::Range;

use super::{Limits, Refusal};
use crate::message::{HeaderName, Message, NameAddr, Parameters, Uri};

/// A longer contact, parameters included, is refused: bindings are kept for hours.
const MAX_CONTACT_LEN: usize = 2048;

/// The three things that a REGISTER can ask for (RFC 3261 section 10.2).
#[derive(Debug)]
pub(super) enum Wish {
    /// No Contact: only tell.
    Fetch,
    /// `Contact: *` with `Expires: 0`.
    RemoveAll,
    /// Add, refresh or remove these.
    Update(Vec<Contact>),
}

/// One Contact value.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) uri: Vec<u8>,
    /// All parameters but `expires`.
    pub(super) parameters: Vec<u8>,
    /// Where in them the value of `+sip.instance` is; empty without one.
    pub(super) instance: Range<usize>,
    /// 0 without one, or without an instance to go with it (RFC 5626 section 6).
    pub(super) reg_id: u32,
    pub(super) q_thousandths: u16,
    /// Within the limits; 0 removes.
    pub(super) expires_s: u32,
}

impl Wish {
    /// Step 6, and of step 7 what concerns the interval.
    pub(super) fn of(request: &Message, limits: &Limits) -> Result<Self, Refusal> {
        let values = request.values(HeaderName::Contact);
        let (mut count, mut stars) = (0_usize, 0_usize);
        for value in values {
            count += 1;
            stars += usize::from(value.as_ref() == b"*");
        }
        if stars > 0 {
            // "If the request has additional Contact fields or an expiration time other than
            // zero, the request is invalid".
            return if count == 1 && request.expires() == Some(0) {
                Ok(Self::RemoveAll)
            } else {
                Err(Refusal::Malformed("Bad Wildcard Contact"))
            };
        }
        // All of the old ones may go while as many new ones come.
        if count > limits.max_contacts_per_user.saturating_mul(2) {
            return Err(Refusal::TooManyContacts);
        }
        if count == 0 {
            return Ok(Self::Fetch);
        }
        let header = request.expires();
        let contacts = request.contacts().map(|contact| match contact {
            Ok(contact) => Contact::of(&contact, header, limits),
            Err(_) => Err(Refusal::Malformed("Bad Contact")),
        });
        contacts.collect::<Result<_, _>>().map(Self::Update)
    }
}

impl Contact {
    fn of(
        contact: &NameAddr<'_>,
        expires_header: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let (parameters, instance) = parameters_without_expires(contact.params);
        let texts = [contact.uri, &parameters];
        if texts.iter().map(|text| text.len()).sum::<usize>() > MAX_CONTACT_LEN {
            return Err(Refusal::Malformed("Contact Too Long"));
        }
        let readable = texts.iter().all(|text| std::str::from_utf8(text).is_ok());
        if !readable || Uri::parse(contact.uri).is_err() {
            return Err(Refusal::Malformed("Bad Contact"));
        }
        Ok(Self {
            uri: contact.uri.to_vec(),
            reg_id: if instance.is_empty() {
                0
            } else {
                contact
                    .params
                    .get(b"reg-id")
                    .and_then(delta_seconds)
                    .unwrap_or(0)
            },
            parameters,
            instance,
            q_thousandths: contact
                .params
                .get(b"q")
                .and_then(q_thousandths)
                .unwrap_or(1000),
            expires_s: interval(contact.params.get(b"expires"), expires_header, limits)?,
        })
    }
}

/// The contact's own `expires`, else the Expires header, else the default; a malformed one counts
/// as absent (section 20.10 and 20.19 let it be 3600).
fn interval(own: Option<&[u8]>, header: Option<u32>, limits: &Limits) -> Result<u32, Refusal> {
    let own = own.map(|value| delta_seconds(value).unwrap_or(limits.default_expires_s));
    let wish = own.or(header).unwrap_or(limits.default_expires_s);
    // "If and only if the requested expiration interval is greater than zero AND smaller than one
    // hour AND less than a registrar-configured minimum".
    if wish > 0 && wish < limits.min_expires_s && wish < 3600 {
        return Err(Refusal::TooBrief);
    }
    Ok(wish.min(limits.max_expires_s))
}

/// Digits; more than fit are as many as fit.
fn delta_seconds(value: &[u8]) -> Option<u32> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0_u32, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
    }))
}

/// `0`, `0.7`, `1.000`: at most three digits behind the point (section 25.1, qvalue).
fn q_thousandths(value: &[u8]) -> Option<u16> {
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &value[value.len()..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) || fraction.len() > 3 {
        return None;
    }
    let digit = |place: usize| {
        fraction
            .get(place)
            .map_or(0, |digit| u16::from(digit - b'0'))
    };
    let thousandths = digit(0) * 100 + digit(1) * 10 + digit(2);
    match (whole, thousandths) {
        (b"0", _) => Some(thousandths),
        (b"1", 0) => Some(1000),
        _ => None,
    }
}

/// Each as `;name=value`, on one line whatever folding there was; and where the instance is.
fn parameters_without_expires(params: Parameters<'_>) -> (Vec<u8>, Range<usize>) {
    let mut out = Vec::new();
    let mut instance = 0..0;
    for (name, value) in params.iter() {
        if name.eq_ignore_ascii_case(b"expires") {
            continue;
        }
        out.push(b';');
        out.extend_from_slice(name);
        if let Some(value) = value {
            out.push(b'=');
            let start = out.len();
            out.extend_from_slice(value);
            if instance.is_empty() && name.eq_ignore_ascii_case(b"+sip.instance") {
                instance = start..out.len();
            }
        }
    }
    for byte in &mut out {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
    (out, instance)
}
