//! SIP over WebSocket (RFC 7118, RFC 6455): the handshake, and messages in frames.
//!
//! Both halves are fed with octets and read nothing themselves, so a WebSocket is one more
//! [`Framing`] of a stream. `tungstenite` has the protocol: masks, fragments, UTF-8, control
//! frames. One WebSocket message is one SIP message, text or binary, and like a datagram it
//! comes out whole and unparsed.
//!
//! The Origin of a browser says which page it shows, not who its user is: it is logged, and
//! decides nothing.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use sip::message::MAX_MESSAGE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use super::stream::{End, Framing, Item};

/// The subprotocol (RFC 7118 section 4).
const SUBPROTOCOL: &str = "sip";
/// A request for a WebSocket is shorter.
const MAX_REQUEST: usize = 8 << 10;
/// What each connection has for octets on their way in.
const READ_BUFFER: usize = 4 << 10;
const PING: &[u8] = b"\r\n\r\n";
const PONG: &[u8] = b"\r\n";

/// What is to be said to what came so far.
enum Greeting {
    More,
    Welcome {
        response: Vec<u8>,
        origin: Option<HeaderValue>,
    },
    Refusal(&'static [u8]),
}

const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// "a server MUST … an appropriate HTTP error code (such as 426 Upgrade Required)" (RFC 6455
/// section 4.2.2).
const UPGRADE_REQUIRED: &[u8] = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const NO_SIP: &[u8] = b"HTTP/1.1 400 Subprotocol Sip Required\r\nSec-WebSocket-Protocol: sip\r\n\
    Connection: close\r\nContent-Length: 0\r\n\r\n";

/// Answers the request for a WebSocket.
pub(super) async fn handshake(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(), End> {
    let mut request = Vec::new();
    loop {
        let read = stream.read_buf(&mut request).await;
        if read.map_err(|_| End::Broken)? == 0 {
            return Err(End::Peer);
        }
        match greet(&request) {
            Greeting::More => {}
            Greeting::Welcome { response, origin } => {
                tracing::debug!(?origin, "WebSocket opened");
                stream.write_all(&response).await.map_err(|_| End::Broken)?;
                return stream.flush().await.map_err(|_| End::Broken);
            }
            Greeting::Refusal(response) => {
                // It is refused, whether it hears so or not.
                let _ = stream.write_all(response).await;
                let _ = stream.shutdown().await;
                return Err(End::Handshake);
            }
        }
    }
}

fn greet(bytes: &[u8]) -> Greeting {
    let (length, request) = match Request::try_parse(bytes) {
        Ok(None) if bytes.len() < MAX_REQUEST => return Greeting::More,
        Ok(None) | Err(_) => return Greeting::Refusal(BAD_REQUEST),
        Ok(Some(request)) => request,
    };
    if length != bytes.len() {
        // Nobody may speak before he is welcome (RFC 6455 section 4.1).
        return Greeting::Refusal(BAD_REQUEST);
    }
    let mut response = match create_response(&request) {
        Ok(response) => response,
        Err(Error::Protocol(
            ProtocolError::MissingSecWebSocketVersionHeader
            | ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader,
        )) => return Greeting::Refusal(UPGRADE_REQUIRED),
        Err(_) => return Greeting::Refusal(BAD_REQUEST),
    };
    if !offers_sip(&request) {
        return Greeting::Refusal(NO_SIP);
    }
    let headers = response.headers_mut();
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    let mut written = Vec::new();
    match write_response(&mut written, &response) {
        Ok(()) => Greeting::Welcome {
            response: written,
            origin: request.headers().get(ORIGIN).cloned(),
        },
        Err(_) => Greeting::Refusal(BAD_REQUEST),
    }
}

/// "The client MUST include the value "sip" in the Sec-WebSocket-Protocol header" (RFC 7118
/// section 4.1).
fn offers_sip(request: &Request) -> bool {
    let offers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    offers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|offer| offer.trim().eq_ignore_ascii_case(SUBPROTOCOL))
}

/// The frames of one connection.
pub(super) struct WsFraming {
    context: WebSocketContext,
    wire: Wire,
    /// Octets came since the last item: what is missing of the next must come in time.
    touched: bool,
}

impl Default for WsFraming {
    fn default() -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        Self {
            context: WebSocketContext::new(Role::Server, Some(config)),
            wire: Wire::default(),
            touched: false,
        }
    }
}

impl Framing for WsFraming {
    fn push(&mut self, bytes: &[u8]) {
        self.touched = true;
        self.wire.incoming.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<Item>, End> {
        loop {
            let message = match self.context.read(&mut self.wire) {
                Ok(message) => message,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Err(End::Peer),
                Err(Error::Capacity(_)) => return Err(End::TooLong),
                Err(_) => return Err(End::BadFrame),
            };
            self.touched = false;
            return Ok(Some(match message {
                tungstenite::Message::Text(text) => sip_item(text.into()),
                tungstenite::Message::Binary(bytes) => sip_item(bytes),
                tungstenite::Message::Ping(_) => Item::Keepalive(self.reply()?),
                tungstenite::Message::Pong(_) => Item::Keepalive(Bytes::new()),
                tungstenite::Message::Close(_) => Item::Farewell(self.reply()?),
                // Never read, only written.
                tungstenite::Message::Frame(_) => continue,
            }));
        }
    }

    fn is_partial(&self) -> bool {
        self.touched
    }

    /// "If there is at least one non-UTF-8 symbol in the whole SIP message … then the whole
    /// message MUST be sent within a WebSocket binary message" (RFC 7118 section 4.2).
    fn frame(message: Bytes) -> Bytes {
        let is_text = std::str::from_utf8(&message).is_ok();
        let kind = if is_text { Data::Text } else { Data::Binary };
        let mut frame = Vec::with_capacity(message.len() + 10);
        // Writing to memory cannot fail.
        let _ = Frame::message(message, OpCode::Data(kind), true).format(&mut frame);
        frame.into()
    }
}

impl WsFraming {
    /// What the protocol wants to be sent for what it has just read.
    fn reply(&mut self) -> Result<Bytes, End> {
        match self.context.flush(&mut self.wire) {
            Ok(()) | Err(Error::ConnectionClosed) => Ok(self.wire.outgoing.split().freeze()),
            Err(_) => Err(End::BadFrame),
        }
    }
}

/// Some clients keep their connection open as on TCP (RFC 5626 section 3.5.1), in messages.
fn sip_item(message: Bytes) -> Item {
    match &message[..] {
        PING => Item::Keepalive(WsFraming::frame(Bytes::from_static(PONG))),
        b"" | PONG => Item::Keepalive(Bytes::new()),
        _ => Item::Datagram(message),
    }
}

/// What `tungstenite` takes for the network.
#[derive(Default)]
struct Wire {
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(self.incoming.len());
        self.incoming.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET / HTTP/1.1\r\nHost: sip.example.com\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, sip\r\n\r\n";

    #[test]
    fn the_handshake_of_the_standard_is_answered_with_its_key_and_the_subprotocol() {
        let Greeting::Welcome { response, .. } = greet(GOOD.as_bytes()) else {
            panic!("refused");
        };
        let response = String::from_utf8(response).unwrap().to_ascii_lowercase();
        assert!(response.starts_with("http/1.1 101 "), "{response}");
        // The key and its answer are those of RFC 6455 section 1.3.
        let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
        assert!(response.contains(accept), "{response}");
        assert!(response.contains("sec-websocket-protocol: sip\r\n"));
    }

    #[test]
    fn a_handshake_is_answered_when_it_is_complete_and_not_before() {
        for length in 0..GOOD.len() {
            assert!(matches!(greet(&GOOD.as_bytes()[..length]), Greeting::More));
        }
    }

    #[test]
    fn what_is_no_handshake_for_sip_is_refused() {
        let cases: [(&str, &str, &[u8]); 6] = [
            ("chat, sip", "chat", NO_SIP),
            ("Sec-WebSocket-Protocol: chat, sip\r\n", "", NO_SIP),
            ("Version: 13", "Version: 8", UPGRADE_REQUIRED),
            ("Upgrade: websocket\r\n", "", UPGRADE_REQUIRED),
            ("GET /", "POST /", BAD_REQUEST),
            ("\r\n\r\n", "\r\n\r\nmore", BAD_REQUEST),
        ];
        for (from, to, refusal) in cases {
            let request = GOOD.replacen(from, to, 1);
            let Greeting::Refusal(response) = greet(request.as_bytes()) else {
                panic!("{to:?} was accepted");
            };
            assert_eq!(response, refusal, "{to:?}");
        }
    }

    #[test]
    fn a_request_without_end_is_refused() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST));
        assert!(matches!(
            greet(endless.as_bytes()),
            Greeting::Refusal(BAD_REQUEST)
        ));
    }

    #[test]
    fn a_message_with_an_octet_that_is_no_utf_8_goes_out_as_binary() {
        assert_eq!(
            &WsFraming::frame(Bytes::from_static(b"ab"))[..],
            b"\x81\x02ab"
        );
        assert_eq!(
            &WsFraming::frame(Bytes::from_static(b"\xff"))[..],
            b"\x82\x01\xff"
        );
    }
}
