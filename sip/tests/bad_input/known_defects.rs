//! What broke other implementations, one test for each rule that they broke; the advisory is named
//! beside it. Those about a message alone are in the test crate `message`, more about session
//! descriptions in `sdp`, about loops in `rfcs`, those about media in the relay's own tests, about names in
//! the concentrator's `dns`.

mod connections;
mod floods;
mod framing;
mod messages;
mod sdp;

/// A request with something of everything.
const FULL: &str = "INVITE sip:callee@example.com SIP/2.0\r\n\
    Via: SIP/2.0/UDP 192.168.1.2:5060;branch=z9hG4bKfull;rport\r\n\
    Via: SIP/2.0/TCP p1.example;branch=z9hG4bKp1;received=192.0.2.1;ttl=1\r\n\
    Max-Forwards: 70\r\n\
    Route: <sip:198.51.100.1;lr>\r\n\
    Record-Route: <sip:p1.example;lr>\r\n\
    From: \"A\" <sip:alice@example.com;x=y>;tag=a1\r\n\
    To: \"B \\\"b\\\"\" <sip:bob:pw@example.com:5060;p=v>;x=\"y\"\r\n\
    Call-ID: full@192.168.1.2\r\n\
    CSeq: 1 INVITE\r\n\
    Contact: <sip:alice@192.168.1.2>;expires=60\r\n\
    Expires: 120\r\n\
    Require: 100rel\r\n\
    Supported: path\r\n\
    Content-Type: application/sdp\r\n\
    Content-Length: 5\r\n\
    \r\n\
    v=0\r\n";
