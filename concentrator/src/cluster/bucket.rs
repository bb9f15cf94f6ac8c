//! The bucket as NATS sees it: names, requests and replies of JetStream, without a connection.
//!
//! A key-value bucket is a stream `KV_<bucket>` of the subjects `$KV.<bucket>.>`, of which each keeps its last
//! message. Ours has `b.<hash>` for each binding, the hash being that of its [`record::key`], and `c.<id>` for
//! each concentrator, its heartbeat. The stream is made by a plain request, because what nats-server 2.9
//! answers is not what newer clients read; settings that newer servers have added are left to them.
//!
//! A message of a stream comes with a reply subject that tells its place in the stream, its place in this
//! delivery, when the leader of the stream took it, and how many are yet to come: `$JS.ACK.` and nine tokens,
//! or twelve of newer servers.
//!
//! Nothing here removes a message: what has not been written for the stream's `max_age` goes by itself.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest as _;
use sip::registrar::record;
use sip::registrar::{AddressOfRecord, Binding};

/// "stream not found"
const NOT_FOUND: u64 = 10_059;
/// How long a consumer without a listener stays on the server.
const ABANDONED: Duration = Duration::from_secs(30);
/// How often a quiet consumer says that it is there.
pub(super) const IDLE: Duration = Duration::from_secs(1);

/// What names a binding in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u128);

impl Key {
    pub(super) fn of(user: &AddressOfRecord, binding: &Binding) -> Self {
        let hash = sha2::Sha256::digest(record::key(user, binding));
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        Self(u128::from_be_bytes(first))
    }
}

/// The subjects of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Names {
    bucket: String,
}

/// What a subject is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Binding(Key),
    Heartbeat(u16),
    /// Somebody else's.
    Strange,
}

impl Names {
    pub(super) fn new(bucket: &str) -> Self {
        let bucket = bucket.to_owned();
        Self { bucket }
    }

    pub(super) fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    pub(super) fn binding(&self, key: Key) -> String {
        format!("$KV.{}.b.{:032x}", self.bucket, key.0)
    }

    pub(super) fn heartbeat(&self, id: u16) -> String {
        format!("$KV.{}.c.{id}", self.bucket)
    }

    pub(super) fn all_bindings(&self) -> String {
        format!("$KV.{}.b.*", self.bucket)
    }

    pub(super) fn all_heartbeats(&self) -> String {
        format!("$KV.{}.c.*", self.bucket)
    }

    pub(super) fn read(&self, subject: &str) -> Subject {
        let rest = subject.strip_prefix("$KV.");
        let rest = rest.and_then(|rest| rest.strip_prefix(self.bucket.as_str()));
        let rest = rest.and_then(|rest| rest.strip_prefix('.'));
        match rest.and_then(|rest| rest.split_once('.')) {
            Some(("b", hash)) if hash.len() == 32 => u128::from_str_radix(hash, 16)
                .map_or(Subject::Strange, |hash| Subject::Binding(Key(hash))),
            Some(("c", id)) => id.parse().map_or(Subject::Strange, Subject::Heartbeat),
            Some(_) | None => Subject::Strange,
        }
    }

    /// Subject and body of the request that makes the stream.
    pub(super) fn create(&self, replicas: u8, max_age: Duration) -> (String, Value) {
        let stream = self.stream();
        let body = json!({
            "name": stream,
            "subjects": [format!("$KV.{}.>", self.bucket)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": 1,
            "max_age": nanos(max_age),
            "num_replicas": replicas,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        (format!("$JS.API.STREAM.CREATE.{stream}"), body)
    }

    pub(super) fn info(&self) -> String {
        format!("$JS.API.STREAM.INFO.{}", self.stream())
    }

    /// Subject and body of the request to be sent messages: all, of which the stream keeps the last of each
    /// subject, or all since one. (To ask for the last of each subject says the same, and costs a server that has
    /// a million of them seconds before it answers.)
    pub(super) fn consume(&self, filter: &str, to: &str, since: Option<u64>) -> (String, Value) {
        let stream = self.stream();
        let mut config = json!({
            "deliver_subject": to,
            "filter_subject": filter,
            "deliver_policy": "all",
            "ack_policy": "none",
            "replay_policy": "instant",
            "flow_control": true,
            "idle_heartbeat": nanos(IDLE),
            "inactive_threshold": nanos(ABANDONED),
            "num_replicas": 1,
            "mem_storage": true,
        });
        if let (Some(since), Some(config)) = (since, config.as_object_mut()) {
            config.insert("deliver_policy".to_owned(), json!("by_start_sequence"));
            config.insert("opt_start_seq".to_owned(), json!(since));
        }
        let body = json!({ "stream_name": stream, "config": config });
        (format!("$JS.API.CONSUMER.CREATE.{stream}"), body)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A reply of JetStream that says no, or none at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no such stream")]
    NoStream,
    #[error("JetStream says: {0}")]
    Said(String),
    #[error("{0}")]
    NoReply(String),
}

/// The body of a reply, unless it says no.
pub(super) fn reply(payload: &[u8]) -> Result<Value, Refusal> {
    let Ok(value) = serde_json::from_slice::<Value>(payload) else {
        let beginning: String = String::from_utf8_lossy(payload).chars().take(80).collect();
        return Err(Refusal::Said(format!("{beginning:?}, which is no JSON")));
    };
    let Some(error) = value.get("error") else {
        return Ok(value);
    };
    if error.get("err_code").and_then(Value::as_u64) == Some(NOT_FOUND) {
        return Err(Refusal::NoStream);
    }
    let description = error.get("description").and_then(Value::as_str);
    Err(Refusal::Said(
        description.map_or_else(|| error.to_string(), str::to_owned),
    ))
}

/// What STREAM.INFO says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    /// Another one under the same name was made at another time.
    pub(super) created: String,
    pub(super) last_sequence: u64,
    pub(super) max_age_ns: u64,
    pub(super) replicas: u64,
    pub(super) per_subject: i64,
}

impl Stream {
    pub(super) fn read(info: &Value) -> Option<Self> {
        let config = info.get("config")?;
        let state = info.get("state")?;
        Some(Self {
            created: info.get("created")?.as_str()?.to_owned(),
            last_sequence: state.get("last_seq")?.as_u64()?,
            max_age_ns: config.get("max_age").and_then(Value::as_u64).unwrap_or(0),
            replicas: config.get("num_replicas")?.as_u64()?,
            per_subject: config.get("max_msgs_per_subject")?.as_i64()?,
        })
    }

    /// What is not as it must be.
    pub(super) fn faults(&self, max_age: Duration) -> Option<String> {
        if self.per_subject != 1 {
            return Some(format!(
                "max_msgs_per_subject is {}, not 1",
                self.per_subject
            ));
        }
        let wanted = nanos(max_age);
        (self.max_age_ns != 0 && self.max_age_ns < wanted).then(|| {
            format!(
                "max_age is {} s and must be {} s or more, as registrations live so long",
                self.max_age_ns / 1_000_000_000,
                max_age.as_secs()
            )
        })
    }
}

/// What the reply subject of a message says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) stream_sequence: u64,
    /// Counts from 1 without gaps.
    pub(super) delivery: u64,
    /// When the leader of the stream took it, in milliseconds since 1970.
    pub(super) taken_ms: u64,
    /// Messages that were there when this one was sent and come after it.
    pub(super) pending: u64,
}

impl Delivered {
    pub(super) fn read(subject: &str) -> Option<Self> {
        let tokens: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        // Stream, consumer, times delivered; newer servers put domain and account before them.
        let from = match tokens.len() {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let number = |at: usize| tokens.get(from + at)?.parse::<u64>().ok();
        Some(Self {
            stream_sequence: number(0)?,
            delivery: number(1)?,
            taken_ms: number(2)? / 1_000_000,
            pending: number(3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_lead_back_to_what_they_are_about() {
        let names = Names::new("sipcast");
        let key = Key(0x00ff_1234);
        let subject = names.binding(key);
        assert_eq!(subject, "$KV.sipcast.b.00000000000000000000000000ff1234");
        assert_eq!(names.read(&subject), Subject::Binding(key));
        assert_eq!(names.read(&names.heartbeat(7)), Subject::Heartbeat(7));
        for strange in [
            "$KV.sipcast.b.ff",
            "$KV.other.c.7",
            "$KV.sipcast.c.x",
            "$KV.sipcast.note",
            "$KV.sipcast.b.zz000000000000000000000000ff1234",
        ] {
            assert_eq!(names.read(strange), Subject::Strange, "{strange}");
        }
    }

    #[test]
    fn the_place_of_a_message_is_read_as_old_and_new_servers_write_it() {
        let old = "$JS.ACK.KV_sipcast.abc.1.42.7.1700000000123456789.9";
        let expected = Delivered {
            stream_sequence: 42,
            delivery: 7,
            taken_ms: 1_700_000_000_123,
            pending: 9,
        };
        assert_eq!(Delivered::read(old), Some(expected));
        let new = "$JS.ACK._.hash.KV_sipcast.abc.1.42.7.1700000000123456789.9.rnd";
        assert_eq!(Delivered::read(new), Some(expected));
        for bad in ["$JS.ACK.a.b.1.42", "$JS.FC.x", "$JS.ACK.a.b.1.x.7.1.9"] {
            assert_eq!(Delivered::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_an_answer_and_from_nonsense() {
        assert!(reply(br#"{"stream":"KV_sipcast","seq":3}"#).is_ok());
        let missing =
            br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert_eq!(reply(missing), Err(Refusal::NoStream));
        let full =
            br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#;
        assert_eq!(
            reply(full),
            Err(Refusal::Said("maximum bytes exceeded".to_owned()))
        );
        assert!(matches!(reply(b"<html>"), Err(Refusal::Said(_))));
    }

    #[test]
    fn a_stream_that_would_lose_bindings_is_found_out() {
        let info = serde_json::json!({
            "created": "2026-01-01T00:00:00Z",
            "config": { "max_age": 3_600_000_000_000_u64, "num_replicas": 3, "max_msgs_per_subject": 1 },
            "state": { "last_seq": 5 },
        });
        let mut stream = Stream::read(&info).unwrap();
        assert_eq!(stream.last_sequence, 5);
        assert!(
            stream
                .faults(Duration::from_secs(15_000))
                .unwrap()
                .contains("max_age")
        );
        assert_eq!(stream.faults(Duration::from_secs(3600)), None);
        stream.per_subject = -1;
        assert!(
            stream
                .faults(Duration::ZERO)
                .unwrap()
                .contains("per_subject")
        );
    }
}
