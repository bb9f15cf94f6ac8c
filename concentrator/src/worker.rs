//! The worker: one SIP core, the calls' media and the relays' leases, driven by one task.
//!
//! Everything that decides is pure and lives in [`Proxy`] and [`Calls`]; this file reads the
//! clock, feeds them and carries away what they produce. In every turn, in this order:
//!
//! 1. flush: messages to phones, questions to the DNS, commands to relays, what relays reported
//! 2. wait: shutdown, relay control (a new INVITE needs fresh leases), the DNS, the tunnel, the
//!    other transports, the earliest deadline, somebody who asks for `/status`, the next snapshot for the gauges
//! 3. feed what came, at most [`BATCH`] messages before the next flush
//!
//! Under load, when packets gather in the tunnel, most turns ask nobody else.

pub(crate) mod draining;
mod gathering;
mod peers;
mod pressure;
mod relays;
mod report;
mod settings;
mod sharing;
mod sightings;
mod stall;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use sip::cookie::Owner;
use sip::digest::Users;
use sip::hop::Hop;
use sip::proxy::Proxy;
use sip::proxy::media::SessionRef;
use sip::proxy::reveal::Reveal;
use tokio::sync::{mpsc, watch};
use tracing::info;
use wire::relay_control::{Silence, ToAgent};

use crate::cdr::Cdr;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::core_link::{PeerInput, Peers};
use crate::decapsulator::TunnelEnd;
use crate::dns::{Answered, Dns};
use crate::edge_keys::AllKeys;
use crate::location::{self, Location};
use crate::media::Calls;
use crate::metrics::Metrics;
use crate::relays::pool::{LinkId, RelayPool, Settings};
use crate::relays::server::RelayInput;
use crate::status::{Asked, Status};
use crate::transport::{Incoming, Payload, TransportEvent, Transports};
use crate::worker::gathering::Gathering;
use crate::worker::pressure::Pressure;
use crate::worker::settings::{authenticate, proxy_config};
use crate::worker::sharing::Waiting;
use crate::worker::sightings::EdgeNames;
use crate::worker::stall::Stall;

const TUNNEL_FAILED: &str = "the tunnel's end failed";

/// Messages taken from the transports before the queues are flushed again.
const BATCH: usize = 64;

/// Turns in a row in which only the tunnel is asked, while its packets gather: to ask everybody costs a
/// wake-up of the runtime. So the others wait for as many pauses at most.
const TURNS_FOR_THE_TUNNEL: u32 = 4;

/// Transactions on each side: each call makes two, which last 32 s over UDP (64 * T1), so that this
/// is room for some 6,000 calls a second; one costs one to two kilobytes.
const MAX_TRANSACTIONS: usize = 400_000;

/// Relayed calls that can be ended from here; what is kept of each is a cookie and some headers.
const MAX_RELAYED_CALLS: usize = 100_000;

/// Between two pages of bindings that are compared or written anew: a million take some ten seconds so, and nobody
/// else waits for longer than one page takes.
const PAGE_INTERVAL: Duration = Duration::from_millis(4);

/// How often the gauges are brought up to date.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);

/// What the worker is given.
#[derive(Debug)]
pub struct Parts {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// What the edges send.
    pub tunnel: TunnelEnd,
    /// Messages that did not come straight from the tunnel.
    pub incoming: mpsc::Receiver<Incoming>,
    /// Connections that closed and flows that failed.
    pub transport_events: mpsc::Receiver<TransportEvent>,
    /// Where messages to phones go.
    pub transports: Transports,
    /// What relays say, and their coming and going.
    pub relay_inputs: mpsc::Receiver<RelayInput>,
    /// What our cookies and connections have.
    pub owner: Owner,
    /// What other concentrators say, and their coming and going.
    pub peer_inputs: mpsc::Receiver<PeerInput>,
    /// Users that take the place of those there are.
    pub users: mpsc::Receiver<Users>,
    /// The edges' keys.
    pub keys: AllKeys,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What `/status` shows.
    pub status: Status,
    /// Who waits for it.
    pub status_asked: mpsc::Receiver<Asked>,
    /// Where bindings are kept over a restart.
    pub location: Option<location::Opened>,
    /// The other concentrators.
    pub cluster: Option<Cluster>,
    /// Where a record of each call goes.
    pub cdr: Option<Cdr>,
    /// True while phones on connections are asked to go.
    pub leaving: watch::Receiver<bool>,
    /// Turns true when the program is to end.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs until the shutdown.
pub async fn run(parts: Parts) -> anyhow::Result<()> {
    let Parts {
        config,
        mut tunnel,
        mut incoming,
        mut transport_events,
        transports,
        mut relay_inputs,
        owner,
        mut peer_inputs,
        mut users,
        mut keys,
        metrics,
        status,
        mut status_asked,
        location,
        cluster,
        cdr,
        leaving,
        mut shutdown,
    } = parts;
    let (dns, mut dns_answers) = Dns::new(&config.dns_servers);
    let peers = Peers::new(owner, config.names_of_peers(), &metrics.core_link);
    let mut worker = Worker::new(&config, transports, dns, (owner, peers))?;
    worker.restore(location, cluster.as_ref())?;
    worker.keep_records(cdr);
    let waiting = Waiting {
        shutdown: &mut shutdown,
        status: &status,
        asked: &mut status_asked,
    };
    let mut inlets = worker.join(&config, cluster, waiting).await?;
    let mut batch = Vec::with_capacity(BATCH);
    let mut next_snapshot = now();
    loop {
        worker.flush();
        let deadline = worker.deadline();
        let received_now = match worker.rest() {
            true => tunnel.receive_now().context(TUNNEL_FAILED)?,
            false => None,
        };
        if let Some(received) = received_now {
            worker.handle_gathered(received, &mut tunnel, &mut peer_inputs);
        } else {
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => {
                    worker.finish();
                    return Ok(());
                }
                Some(input) = relay_inputs.recv() => worker.handle_relay(input),
                Some(input) = peer_inputs.recv() => worker.handle_peers(input, &mut peer_inputs),
                Some(answered) = dns_answers.recv() => worker.handle_dns(answered),
                Some(event) = transport_events.recv() => worker.handle_transport(event, &mut incoming),
                Some(users) = users.recv() => worker.replace_users(users),
                Some(asked) = status_asked.recv() => worker.show(&status, asked),
                received = tunnel.receive() => {
                    worker.handle_tunnel(received.context(TUNNEL_FAILED)?, &mut tunnel);
                    // A flood in the tunnel must not silence the others.
                    worker.handle_waiting(&mut incoming);
                    worker.handle_heard_waiting(&mut inlets);
                }
                received = incoming.recv_many(&mut batch, BATCH), if !incoming.is_closed() => {
                    anyhow::ensure!(received > 0, "the transports have ended");
                    worker.handle_batch(&mut batch, &incoming);
                    worker.handle_heard_waiting(&mut inlets);
                }
                () = inlets.ready() => worker.handle_heard_waiting(&mut inlets),
                () = tokio::time::sleep_until(deadline.min(next_snapshot).into()) => {}
            }
        }
        // Nor may it stop the clock.
        if worker.pass_time(deadline, &mut next_snapshot) {
            tunnel.publish();
            worker.publish(&metrics);
            worker.learn_keys(&config, &mut keys);
            worker.ask_phones_to_go(*leaving.borrow());
        }
    }
}

struct Worker {
    proxy: Proxy,
    calls: Calls,
    transports: Transports,
    peers: Peers,
    dns: Dns,
    links: HashMap<LinkId, mpsc::Sender<ToAgent>>,
    location: Option<Location>,
    cluster: Option<Cluster>,
    cdr: Option<Cdr>,
    /// Sessions that their relays are about to end for want of media.
    silent: HashMap<SessionRef, Silence>,
    /// Calls without media whose relay has failed.
    lost: HashSet<SessionRef>,
    pressure: Pressure,
    gathering: Gathering,
    /// Of the edges, for whoever looks at the pages.
    names: EdgeNames,
    /// Before the next read.
    pause: Option<Duration>,
    turns_for_the_tunnel: u32,
    /// Only where there are others.
    stall: Option<Stall>,
}

impl Worker {
    fn new(
        config: &Config,
        transports: Transports,
        dns: Dns,
        (owner, peers): (Owner, Peers),
    ) -> anyhow::Result<Self> {
        let relays = config.agents();
        let first_request = u64::try_from(unix_time().as_micros()).unwrap_or(1);
        let mut settings = Settings {
            first_request,
            gate_mode: config.media.source,
            ..Settings::default()
        };
        if let Some(leases) = config.leases {
            settings.stock = leases.min_stock;
            settings.max_stock = leases.max_stock;
        }
        let mut relays = RelayPool::new(&config.name, relays, settings);
        relays.refuse_addresses(config.own_networks());
        for (agent, allowed) in config.media_addresses() {
            relays.allow_addresses(agent, allowed);
        }
        let mut calls = Calls::new(
            config.media.anchor,
            config.media.relay,
            config.own_networks(),
            relays,
        );
        calls.set_plan(config.media_plan());
        calls.set_patience(config.leases.map_or(Duration::ZERO, |leases| leases.wait));
        let mut proxy = Proxy::new(proxy_config(config, owner)?);
        authenticate(&mut proxy, config)?;
        proxy.reveal_edges(Reveal {
            to: config.sip.reveal_edge_to.clone(),
            names: config.edge_names(),
        });
        if config.media.end_on_timeout {
            proxy.remember_dialogs(MAX_RELAYED_CALLS);
        }
        Ok(Self {
            proxy,
            calls,
            transports,
            peers,
            dns,
            links: HashMap::new(),
            location: None,
            cluster: None,
            cdr: None,
            silent: HashMap::new(),
            lost: HashSet::new(),
            pressure: Pressure::default(),
            gathering: Gathering::default(),
            names: EdgeNames::new(config.edge_names()),
            pause: None,
            turns_for_the_tunnel: 0,
            stall: config.core_link.as_ref().map(|_| Stall::default()),
        })
    }

    /// Takes back the bindings that were kept, and keeps them from now on.
    fn restore(
        &mut self,
        location: Option<location::Opened>,
        cluster: Option<&Cluster>,
    ) -> anyhow::Result<()> {
        if let Some(cluster) = cluster {
            self.share(cluster, location.is_some());
        }
        let Some(mut opened) = location else {
            if cluster.is_none() {
                self.proxy.ignore_registrations();
            }
            return Ok(());
        };
        if cluster.is_some() {
            opened.hurry();
        }
        let start = now();
        let location = opened.restore(|record| {
            self.proxy.restore(record, start);
        })?;
        let bindings = self.proxy.registrar().counts().bindings;
        let took_ms = now().saturating_duration_since(start).as_millis();
        info!(bindings, %took_ms, "bindings restored");
        self.location = Some(location);
        Ok(())
    }

    fn keep_records(&mut self, cdr: Option<Cdr>) {
        if cdr.is_some() {
            self.proxy.report_calls();
        }
        self.cdr = cdr;
    }

    /// Does what is due. What was set since the deadline was asked for is not. True when the gauges are.
    fn pass_time(&mut self, deadline: Instant, next_snapshot: &mut Instant) -> bool {
        let now = now();
        if let Some(stall) = &mut self.stall {
            stall.turn(now);
        }
        if now >= deadline {
            self.handle_timeout(now);
        }
        let snapshot = now >= *next_snapshot;
        if snapshot {
            *next_snapshot = now + SNAPSHOT_INTERVAL;
        }
        snapshot
    }

    /// The program ends.
    fn finish(&mut self) {
        self.flush();
        if let Some(cdr) = &mut self.cdr {
            cdr.finish(unix_time(), now());
        }
    }

    fn publish(&self, metrics: &Metrics) {
        report::publish(&self.proxy, &self.calls, metrics);
        sightings::publish(self.proxy.registrar(), &self.names, metrics);
        if let Some(location) = &self.location {
            report::publish_location(location, metrics);
        }
        if let Some(cluster) = &self.cluster {
            report::publish_cluster(cluster, &self.proxy, metrics);
        }
        if let Some(cdr) = &self.cdr {
            report::publish_records(cdr, metrics);
        }
    }

    fn show(&self, status: &Status, asked: Asked) {
        report::show(&self.proxy, &self.calls, status, now());
        let clock = (now(), unix_time());
        let bindings = sightings::list(self.proxy.registrar(), &self.names, clock);
        status.set("bindings", bindings);
        status.set("core_link", self.peers.status());
        if let Some(location) = &self.location {
            status.set("location", location.status());
        }
        if let Some(cluster) = &self.cluster {
            status.set("cluster", cluster.status());
        }
        if let Some(cdr) = &self.cdr {
            status.set("cdr", cdr.status());
        }
        let of_user = asked
            .user
            .map(|user| sightings::list_of(&user, self.proxy.registrar(), &self.names, clock));
        // Whoever asked may have gone.
        let _ = asked.done.send(of_user);
    }

    /// Carries away what the cores have produced.
    fn flush(&mut self) {
        self.send_all();
        while let Some((id, query)) = self.proxy.poll_query() {
            self.dns.ask(id, query);
        }
        self.take_news();
        while let Some(command) = self.calls.relays.poll_command() {
            self.perform(command);
        }
        self.record_calls();
        let mut ended = false;
        while let Some(event) = self.calls.relays.poll_event() {
            ended |= self.handle_relay_event(event);
        }
        if !self.lost.is_empty() {
            let lost = std::mem::take(&mut self.lost);
            self.proxy.handle_media_lost(&lost, &mut self.calls, now());
            self.record_calls();
            ended = true;
        }
        if ended {
            self.send_all();
        }
        if let Some(cdr) = &mut self.cdr {
            cdr.flush(unix_time(), now());
        }
    }

    fn send_all(&mut self) {
        while let Some(transmit) = self.proxy.poll_transmit() {
            if let Some(transmit) = self.peers.carry(transmit) {
                self.transports.send(transmit);
            }
        }
        while let Some(handover) = self.proxy.poll_handover() {
            self.peers.hand_over(&handover);
        }
        self.transports.flush();
    }

    fn record_calls(&mut self) {
        if let Some(cdr) = &mut self.cdr {
            while let Some(event) = self.proxy.poll_call() {
                cdr.handle_call(event, &self.calls, unix_time(), now());
            }
        }
    }

    /// Lets packets gather, where that pays. True where only the tunnel is to be asked next.
    fn rest(&mut self) -> bool {
        let Some(pause) = self.pause.take() else {
            return false;
        };
        // Not an await: whatever arrives would wake us.
        std::thread::sleep(pause);
        self.turns_for_the_tunnel = (self.turns_for_the_tunnel + 1) % TURNS_FOR_THE_TUNNEL;
        self.turns_for_the_tunnel != 0
    }

    fn deadline(&self) -> Instant {
        let paging = self.cluster.as_ref().is_some_and(Cluster::is_comparing)
            || self.location.as_ref().is_some_and(Location::is_rewriting);
        let next_page = paging.then(|| (now() + PAGE_INTERVAL, "next page"));
        [
            self.proxy.poll_timeout(),
            self.calls.relays.poll_timeout(),
            next_page,
        ]
        .into_iter()
        .flatten()
        .map(|(at, _)| at)
        .min()
        .unwrap_or_else(|| now() + Duration::from_secs(3600))
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.calls.relays.handle_timeout(now);
        self.proxy.handle_timeout(&mut self.calls, now);
    }

    /// Other concentrators may know the edges by their new keys.
    fn learn_keys(&mut self, config: &Config, keys: &mut AllKeys) {
        if !keys.has_changed().unwrap_or_default() {
            return;
        }
        for (alias, edge) in config.aliases(&keys.borrow_and_update()) {
            self.names.know_as(alias, &edge.name);
            for relay in &edge.relays {
                self.calls.know_as(alias, edge.relay_id(relay));
            }
        }
    }

    fn replace_users(&mut self, users: Users) {
        let old = self.proxy.replace_users(users);
        // Hundreds of thousands of them take a while to be freed.
        tokio::task::spawn_blocking(move || drop(old));
    }

    fn handle_tunnel(&mut self, received: usize, tunnel: &mut TunnelEnd) {
        let now = now();
        let more = TunnelEnd::has_more(received);
        if let Some(stall) = &mut self.stall {
            stall.turn(now);
            if stall.are_old(more, now) {
                return tunnel.drop_packets();
            }
        }
        self.pressure.observe_tunnel(more, now);
        self.proxy.set_overloaded(self.pressure.is_high());
        self.pause = self.gathering.observe(received, more, now);
        tunnel.handle_packets(now, |incoming| self.handle_incoming(incoming, now));
    }

    fn handle_waiting(&mut self, incoming: &mut mpsc::Receiver<Incoming>) {
        let now = now();
        let waiting = incoming.len();
        let taken = waiting.min(BATCH);
        self.observe_queue(taken, waiting - taken, incoming, now);
        for _ in 0..taken {
            let Ok(incoming) = incoming.try_recv() else {
                return;
            };
            self.handle_incoming(incoming, now);
        }
    }

    /// All that is there now: no more than the queue holds.
    fn handle_all_waiting(&mut self, incoming: &mut mpsc::Receiver<Incoming>) {
        for _ in 0..incoming.len().div_ceil(BATCH) {
            self.handle_waiting(incoming);
        }
    }

    /// What was just taken from the queue, after the tunnel was found empty.
    fn handle_batch(&mut self, batch: &mut Vec<Incoming>, queue: &mpsc::Receiver<Incoming>) {
        let now = now();
        self.pressure.observe_tunnel(false, now);
        self.observe_queue(batch.len(), queue.len(), queue, now);
        for incoming in batch.drain(..) {
            self.handle_incoming(incoming, now);
        }
    }

    fn observe_queue(
        &mut self,
        taken: usize,
        left: usize,
        queue: &mpsc::Receiver<Incoming>,
        now: Instant,
    ) {
        let room = queue.max_capacity();
        self.pressure.observe_queue(taken, left, room, now);
        self.proxy.set_overloaded(self.pressure.is_high());
    }

    fn handle_incoming(&mut self, incoming: Incoming, now: Instant) {
        let Incoming { hop, payload } = incoming;
        match payload {
            Payload::Datagram(bytes) if self.transports.answer_stun(&hop.flow, &bytes) => {}
            Payload::Datagram(bytes) => {
                self.proxy.handle_message(bytes, &hop, &mut self.calls, now);
            }
            Payload::Message(message) => {
                self.note_verified_peer(&hop);
                self.proxy
                    .handle_parsed(*message, &hop, &mut self.calls, now);
            }
        }
    }

    /// Tells the core whom the other end of a connection has proved to be, where that matters.
    fn note_verified_peer(&mut self, hop: &Hop) {
        if let Some(connection) = hop.flow.connection
            && self.proxy.asks_for_certificates()
            && let Some(names) = self.transports.verified_names(connection)
        {
            self.proxy.handle_verified_peer(connection, &names);
        }
    }

    fn handle_dns(&mut self, answered: Answered) {
        let Answered { id, answer } = answered;
        self.proxy.handle_answer(id, answer, &mut self.calls, now());
    }

    fn handle_transport(&mut self, event: TransportEvent, incoming: &mut mpsc::Receiver<Incoming>) {
        // What a phone has said before it closed its connection comes first.
        self.handle_all_waiting(incoming);
        match event {
            TransportEvent::Closed(connection) => {
                self.proxy
                    .handle_connection_closed(connection, &mut self.calls, now());
            }
            TransportEvent::Failed(flow) => {
                self.peers.tell_failed(&flow);
                self.proxy
                    .handle_transport_error(&flow, &mut self.calls, now());
            }
        }
    }
}

/// What marks the cookies and connections of this process, among all concentrators of the service.
pub fn draw_owner() -> anyhow::Result<Owner> {
    Ok(Owner(u16::from_be_bytes(random()?)))
}

pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut random = std::fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes)?;
    Ok(bytes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the worker's clock is read here and handed on"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the worker's clock is read here and handed on"
)]
pub(crate) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
