//! Asks the DNS what the SIP core wants to know (RFC 3263 says what, `sip::resolve` knows).
//!
//! [`Dns::ask`] starts one task for each question, of which [`MAX_QUESTIONS`] run at a time; the
//! answers come back on one channel to the worker. The library caches by TTL, negative answers too
//! (RFC 2308), and asks again over TCP what does not fit a datagram. Without a resolver, as on a
//! machine without /etc/resolv.conf, every question fails at once and only numeric next hops work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use sip::proxy::QueryId;
use sip::resolve::{Answer, Kind, Naptr, Query, Srv};
use tokio::sync::{Semaphore, mpsc};

/// Questions under way at a time; the core bounds those that wait.
const MAX_QUESTIONS: usize = 512;
/// A server that is silent for so long is asked again, or the next one is.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What came of a question.
#[derive(Debug)]
pub struct Answered {
    /// The question's number.
    pub id: QueryId,
    /// The answer.
    pub answer: Answer,
}

/// A resolver, and the way back to the worker.
#[derive(Debug)]
pub struct Dns {
    resolver: Option<Arc<TokioResolver>>,
    free: Arc<Semaphore>,
    answers: mpsc::UnboundedSender<Answered>,
}

impl Dns {
    /// Asks these servers, or whom the system asks where there are none.
    pub fn new(servers: &[SocketAddr]) -> (Self, mpsc::UnboundedReceiver<Answered>) {
        // As many answers as questions can wait in it, and the core bounds those.
        let (answers, receiver) = mpsc::unbounded_channel();
        let resolver = resolver(servers)
            .map_err(
                |error| tracing::warn!(%error, "no DNS: only numeric next hops can be reached"),
            )
            .ok();
        let dns = Self {
            resolver: resolver.map(Arc::new),
            free: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            answers,
        };
        (dns, receiver)
    }

    /// Asks a question in a task of its own.
    pub fn ask(&self, id: QueryId, query: Query) {
        let answers = self.answers.clone();
        let (Some(resolver), Ok(permit)) = (
            self.resolver.clone(),
            Arc::clone(&self.free).try_acquire_owned(),
        ) else {
            let answer = Answer::Failed;
            // The receiver is the worker, who called this.
            let _ = answers.send(Answered { id, answer });
            return;
        };
        tokio::spawn(async move {
            let answer = look_up(&resolver, query).await;
            drop(permit);
            // An error means that the worker has ended.
            let _ = answers.send(Answered { id, answer });
        });
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = servers.iter().map(|server| {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = TIMEOUT;
    // /etc/hosts knows no SRV, and what it says of a carrier's host is a mistake.
    options.use_hosts_file = ResolveHosts::Never;
    builder.build()
}

async fn look_up(resolver: &TokioResolver, query: Query) -> Answer {
    let kind = match query.kind {
        Kind::Naptr => RecordType::NAPTR,
        Kind::Srv => RecordType::SRV,
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::AAAA,
    };
    let Ok(mut name) = Name::from_ascii(&query.name) else {
        return Answer::Nothing;
    };
    // A name of the DNS, never one to be completed with a search list.
    name.set_fqdn(true);
    match resolver.lookup(name, kind).await {
        Ok(found) => answer(
            query.kind,
            found.answers().iter().map(|record| &record.data),
        ),
        Err(error) if error.is_nx_domain() || error.is_no_records_found() => Answer::Nothing,
        Err(error) => {
            tracing::debug!(name = query.name, %error, "the DNS does not answer");
            Answer::Failed
        }
    }
}

/// The records of the kind that was asked for; a CNAME on the way is not one.
fn answer<'a>(kind: Kind, records: impl Iterator<Item = &'a RData>) -> Answer {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut naptr, mut srv, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        if let RData::NAPTR(record) = record {
            naptr.push(Naptr {
                order: record.order,
                preference: record.preference,
                flags: text(&record.flags),
                service: text(&record.services),
                replacement: record.replacement.to_ascii(),
            });
        } else if let RData::SRV(record) = record {
            srv.push(Srv {
                priority: record.priority,
                weight: record.weight,
                port: record.port,
                target: record.target.to_ascii(),
            });
        } else if let Some(address) = record.ip_addr() {
            addresses.push(address);
        }
    }
    match kind {
        Kind::Naptr => Answer::Naptr(naptr),
        Kind::Srv => Answer::Srv(srv),
        Kind::A | Kind::Aaaa => Answer::Addresses(addresses),
    }
}

#[cfg(test)]
mod tests;
