//! The little HTTP that reads a program's admin pages from inside its namespace.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::namespace::Namespace;

const LIMIT: Duration = Duration::from_secs(3);

/// GET; the body of a 200.
pub(crate) fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<String> {
    namespace
        .inside(|| fetch(address, path))
        .with_context(|| format!("[{}] GET http://{address}{path}", namespace.name()))
}

fn fetch(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // HTTP/1.0: the answer is neither chunked nor kept open.
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the header")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("status {status}: {body}");
    }
    Ok(body.to_owned())
}
