//! rsip writes messages and reads them back; ours reads the same fields out of them.
//!
//! Only what rsip gets right is generated: no folding, no compact forms, no IPv6, no dot in a user,
//! one value a line.

use proptest::prelude::*;
use rsip::headers::UntypedHeader;
use rsip::message::HasHeaders;
use rsip::prelude::{HeadersExt, ToTypedHeader};
use sip::message::{HeaderName, Host, Uri};

use super::{parse, refusal};

fn uri() -> impl Strategy<Value = rsip::Uri> {
    let host = prop_oneof!["[a-z]{1,8}\\.example\\.com", Just("192.0.2.7".to_owned())];
    (
        any::<bool>(),
        "[a-z][a-z0-9]{0,10}",
        host,
        prop::option::of(1..u16::MAX),
        any::<bool>(),
    )
        .prop_map(|(secure, user, host, port, lr)| rsip::Uri {
            scheme: Some(if secure {
                rsip::Scheme::Sips
            } else {
                rsip::Scheme::Sip
            }),
            auth: Some((user, None::<String>).into()),
            host_with_port: rsip::HostWithPort {
                host: rsip::Host::from(host),
                port: port.map(Into::into),
            },
            params: if lr { vec![rsip::Param::Lr] } else { vec![] },
            headers: vec![],
        })
}

fn request() -> impl Strategy<Value = rsip::Request> {
    let methods = prop::sample::select(rsip::Method::all());
    let names = (
        "[A-Za-z][A-Za-z ]{0,9}[A-Za-z]",
        "[a-z0-9]{1,20}",
        "[a-z0-9]{1,30}@[a-z]{1,9}",
    );
    let numbers = (
        0..1_u32 << 31,
        any::<u8>(),
        prop::collection::vec("[a-z0-9]{1,16}", 1..5),
    );
    let uris = (uri(), uri(), prop::collection::vec(uri(), 0..3), uri());
    (methods, names, numbers, uris, "[ -~]{0,60}").prop_map(
        |(
            method,
            (display, tag, call_id),
            (number, hops, branches),
            (target, from, routes, contact),
            body,
        )| {
            let mut headers = rsip::Headers::default();
            for branch in branches {
                let via = format!(
                    "SIP/2.0/UDP {}:5070;branch=z9hG4bK{branch};rport",
                    "pc.example.com"
                );
                headers.push(rsip::headers::Via::new(via).into());
            }
            for uri in routes {
                headers.push(rsip::headers::Route::new(format!("<{uri}>")).into());
            }
            let from = rsip::typed::From {
                display_name: Some(format!("\"{display}\"")),
                uri: from,
                params: vec![rsip::Param::Tag(tag.into())],
            };
            let to = rsip::typed::To {
                display_name: None,
                uri: target.clone(),
                params: vec![],
            };
            let contact = rsip::typed::Contact {
                display_name: None,
                uri: contact,
                params: vec![],
            };
            headers.push(rsip::headers::MaxForwards::from(u32::from(hops)).into());
            headers.push(rsip::Header::From(from.into()));
            headers.push(rsip::Header::To(to.into()));
            headers.push(rsip::Header::Contact(contact.into()));
            headers.push(rsip::headers::CallId::new(call_id).into());
            headers.push(rsip::Header::CSeq(
                rsip::typed::CSeq {
                    seq: number,
                    method,
                }
                .into(),
            ));
            headers.push(
                rsip::headers::ContentLength::from(u32::try_from(body.len()).unwrap()).into(),
            );
            rsip::Request {
                method,
                uri: target,
                version: rsip::Version::V2,
                headers,
                body: body.into_bytes(),
            }
        },
    )
}

fn assert_same_uri(ours: &[u8], theirs: &rsip::Uri) {
    let uri = Uri::parse(ours).unwrap();
    assert_eq!(std::str::from_utf8(ours).unwrap(), theirs.to_string());
    assert_eq!(uri.user, theirs.user().map(str::as_bytes));
    assert_eq!(uri.host.to_string(), theirs.host().to_string());
    assert_eq!(uri.port, theirs.port().map(|port| *port.value()));
    assert_eq!(
        uri.param("lr").is_some(),
        theirs.params.contains(&rsip::Param::Lr)
    );
    assert_eq!(
        matches!(uri.host, Host::V4(_)),
        theirs.host().to_string() == "192.0.2.7"
    );
}

proptest! {
    #[test]
    fn what_rsip_writes_we_read_as_rsip_does(request in request()) {
        let ours = parse(request.to_string());
        prop_assert_eq!(refusal(&ours), None);
        let theirs = rsip::Request::try_from(request.to_string()).unwrap();

        let method = theirs.method.to_string();
        prop_assert_eq!(ours.method().as_bytes(), method.as_bytes());
        assert_same_uri(ours.request_uri(), &theirs.uri);
        prop_assert_eq!(ours.body(), &theirs.body[..]);
        prop_assert_eq!(ours.headers().count(), theirs.headers().iter().count());

        let from = theirs.from_header().unwrap().typed().unwrap();
        prop_assert_eq!(ours.from().unwrap().tag(), from.tag().map(|tag| tag.value().as_bytes()));
        assert_same_uri(ours.from().unwrap().uri, &from.uri);
        let to = theirs.to_header().unwrap().typed().unwrap();
        assert_same_uri(ours.to().unwrap().uri, &to.uri);
        let contact = theirs.contact_header().unwrap().typed().unwrap();
        assert_same_uri(ours.contacts().next().unwrap().unwrap().uri, &contact.uri);

        let via = theirs.via_header().unwrap().typed().unwrap();
        let our_via = ours.top_via().unwrap();
        prop_assert_eq!(our_via.branch(), via.branch().map(|branch| branch.value().as_bytes()));
        prop_assert_eq!(our_via.port, via.sent_by().port().map(|port| *port.value()));
        prop_assert_eq!(our_via.host.to_string(), via.sent_by().host().to_string());

        let cseq = theirs.cseq_header().unwrap().typed().unwrap();
        prop_assert_eq!(ours.cseq().unwrap().0, cseq.seq);
        prop_assert_eq!(ours.call_id().unwrap(), theirs.call_id_header().unwrap().value().as_bytes());
        let hops = theirs.max_forwards_header().unwrap().num().unwrap();
        prop_assert_eq!(ours.max_forwards().unwrap().map(u32::from), Some(hops));
    }

    #[test]
    fn rsip_reads_our_answers(request in request(), status in prop::sample::select(vec![100_u16, 200, 404, 503])) {
        let answer = parse(request.to_string()).respond(status, "Some Reason").to_tag("ours").build();
        let theirs = rsip::Response::try_from(answer.bytes().to_vec()).unwrap();
        prop_assert_eq!(u16::from(theirs.status_code.clone()), status);
        prop_assert_eq!(theirs.headers().iter().count(), answer.headers().count());
        let to = theirs.to_header().unwrap().typed().unwrap();
        prop_assert_eq!(to.tag().map(|tag| tag.value()), Some("ours"));
    }

    #[test]
    fn rsip_reads_our_edits(request in request(), target in uri()) {
        let message = parse(request.to_string());
        let mut edit = message.edit();
        edit.set_request_uri(target.to_string());
        edit.push_front(HeaderName::Via, "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKours");
        let theirs = rsip::Request::try_from(edit.finish().bytes().to_vec()).unwrap();
        prop_assert_eq!(theirs.uri.to_string(), target.to_string());
        let via = theirs.via_header().unwrap().typed().unwrap();
        prop_assert_eq!(via.branch().map(|branch| branch.value()), Some("z9hG4bKours"));
    }
}
