//! A name server that we play ourselves, and others that would like to be it.

use std::collections::HashSet;
use std::net::IpAddr;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);
const RIGHT: [u8; 4] = [192, 0, 2, 1];
const FORGED: [u8; 4] = [203, 0, 113, 66];
/// Octets of a header (RFC 1035 section 4.1.1).
const HEADER: usize = 12;

/// The answer of a name server to a question: one address.
fn answer_to(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let name = query[HEADER..].iter().position(|octet| *octet == 0);
    let end = HEADER + name.expect("a name") + 5;
    let mut answer = query[..end].to_vec();
    // A response, recursion desired and available; one question, one answer, nothing else.
    answer[2..HEADER].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    // The name of the question; A, IN, a minute, four octets.
    answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend_from_slice(&address);
    answer
}

async fn rig() -> (UdpSocket, Dns, mpsc::UnboundedReceiver<Answered>) {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    let (dns, answers) = Dns::new(&[server.local_addr().expect("address")]);
    (server, dns, answers)
}

fn ask(dns: &Dns, number: u64) {
    let name = format!("sbc{number}.carrier.example");
    dns.ask(
        QueryId(number),
        Query {
            name,
            kind: Kind::A,
        },
    );
}

/// Resolvers of others believed whoever answered first (pjsip d9514ce3e: numbers that could be
/// guessed, the source not looked at).
#[tokio::test]
async fn an_answer_from_elsewhere_or_with_another_number_or_name_is_not_believed() {
    let (server, dns, mut answers) = rig().await;
    ask(&dns, 1);
    let mut query = [0; 512];
    let (length, from) = server.recv_from(&mut query).await.expect("a question");
    let query = &query[..length];

    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    let forged = answer_to(query, FORGED);
    elsewhere.send_to(&forged, from).await.expect("sent");
    let mut numbered = forged.clone();
    numbered[1] ^= 1;
    server.send_to(&numbered, from).await.expect("sent");
    let mut named = forged;
    named[HEADER + 1] = b'x';
    server.send_to(&named, from).await.expect("sent");
    let right = answer_to(query, RIGHT);
    server.send_to(&right, from).await.expect("sent");

    let answered = timeout(PATIENCE, answers.recv()).await.expect("in time");
    let answered = answered.expect("an answer");
    assert_eq!(answered.id, QueryId(1));
    assert_eq!(
        answered.answer,
        Answer::Addresses(vec![IpAddr::from(RIGHT)])
    );
}

#[tokio::test]
async fn numbers_and_ports_of_questions_cannot_be_guessed() {
    const QUESTIONS: usize = 32;
    let (server, dns, _answers) = rig().await;
    let (mut numbers, mut ports) = (Vec::new(), HashSet::new());
    for number in 0..QUESTIONS {
        ask(&dns, number as u64);
        let mut query = [0; 512];
        let received = timeout(PATIENCE, server.recv_from(&mut query)).await;
        let (_, from) = received.expect("in time").expect("a question");
        numbers.push(u16::from_be_bytes([query[0], query[1]]));
        ports.insert(from.port());
    }
    let distances: HashSet<u16> = numbers
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    assert!(
        distances.len() > QUESTIONS / 2,
        "the numbers follow a rule: {numbers:?}"
    );
    assert!(
        ports.len() > QUESTIONS / 2,
        "{} ports for {QUESTIONS} questions",
        ports.len()
    );
}
