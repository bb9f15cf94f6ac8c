//! The worker's part of a cluster: what happened goes to the disk and to the others, what they did comes in.

use std::time::Duration;

use sip::registrar::record::Clock;
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use super::{BATCH, Worker, now, unix_time};
use crate::cluster::{Cluster, Heard};
use crate::config::Config;
use crate::status::{Asked, Status};

/// What the worker hears of registrations.
pub(super) struct Inlets {
    /// From the others; nothing ever comes where there are none.
    heard: mpsc::Receiver<Heard>,
    /// The first of what is waiting.
    first: Option<Heard>,
    /// From the disk: up to which number all is on it.
    kept: watch::Receiver<u64>,
    /// So that they stay open.
    _open: (Option<mpsc::Sender<Heard>>, Option<watch::Sender<u64>>),
}

impl Inlets {
    /// Waits until there is something for [`Worker::handle_heard_waiting`].
    pub(super) async fn ready(&mut self) {
        if self.first.is_some() {
            return;
        }
        tokio::select! {
            Some(heard) = self.heard.recv() => self.first = Some(heard),
            Ok(()) = self.kept.changed() => self.kept.mark_changed(),
            // The task has ended, as at the end of the program.
            else => std::future::pending().await,
        }
    }
}

/// Who may want something while the worker waits for the others.
pub(super) struct Waiting<'a> {
    pub(super) shutdown: &'a mut watch::Receiver<bool>,
    pub(super) status: &'a Status,
    pub(super) asked: &'a mut mpsc::Receiver<Asked>,
}

impl Worker {
    /// Before bindings are restored: they may have to be shared.
    pub(super) fn share(&mut self, cluster: &Cluster, disk: bool) {
        // Until there is a better one.
        let clock = Clock {
            at: now(),
            unix_ms: u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX),
        };
        self.proxy
            .share_registrations(cluster.id(), clock, cluster.ack_wait(), disk);
    }

    /// Begins to listen to the others, if there are any, and waits until all that they have is here or the
    /// patience is over.
    pub(super) async fn join(
        &mut self,
        config: &Config,
        cluster: Option<Cluster>,
        mut waiting: Waiting<'_>,
    ) -> anyhow::Result<Inlets> {
        let kept = self.location.as_ref().map(|location| location.kept());
        let (keep_open, kept) = match kept {
            Some(kept) => (None, kept),
            None => {
                let (open, kept) = watch::channel(0);
                (Some(open), kept)
            }
        };
        let Some(mut cluster) = cluster else {
            let (open, heard) = mpsc::channel(1);
            return Ok(Inlets {
                heard,
                first: None,
                kept,
                _open: (Some(open), keep_open),
            });
        };
        let heard = cluster.start(config)?;
        let patience = cluster.start_wait();
        self.cluster = Some(cluster);
        let mut inlets = Inlets {
            heard,
            first: None,
            kept,
            _open: (None, keep_open),
        };
        self.hold_location(true);
        self.wait_for_all(&mut inlets, &mut waiting, patience).await;
        self.hold_location(false);
        if let Some(cluster) = &self.cluster {
            cluster.serve();
        }
        Ok(inlets)
    }

    fn hold_location(&mut self, held: bool) {
        if let Some(location) = &mut self.location {
            location.hold(held);
        }
    }

    async fn wait_for_all(
        &mut self,
        inlets: &mut Inlets,
        waiting: &mut Waiting<'_>,
        patience: Duration,
    ) {
        let start = now();
        let mut last_heard = start;
        let mut batch = Vec::with_capacity(BATCH);
        let is_complete = |worker: &Self| worker.cluster.as_ref().is_none_or(|c| c.is_joined());
        while !is_complete(self) {
            tokio::select! {
                _ = waiting.shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep_until((last_heard + patience).into()) => {
                    let bindings = self.proxy.registrar().counts().bindings;
                    return error!(
                        bindings,
                        "cluster: NATS has not given all registrations, and none for cluster.start_wait_s; \
                         serving with those that are here"
                    );
                }
                Some(asked) = waiting.asked.recv() => self.show(waiting.status, asked),
                received = inlets.heard.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    // Clock and members come without any bindings, too.
                    if batch.iter().any(|heard| matches!(heard, Heard::Record(_))) {
                        last_heard = now();
                    }
                    self.handle_heard(&mut batch);
                }
            }
            self.take_news();
        }
        let took_ms = now().saturating_duration_since(start).as_millis();
        let bindings = self.proxy.registrar().counts().bindings;
        info!(bindings, %took_ms, "cluster: complete");
    }

    /// Some of what the others did, while other things press.
    pub(super) fn handle_heard_waiting(&mut self, inlets: &mut Inlets) {
        if self.cluster.is_none() {
            inlets.kept.mark_unchanged();
            return;
        }
        let mut batch: Vec<Heard> = inlets.first.take().into_iter().collect();
        while batch.len() < BATCH
            && let Ok(heard) = inlets.heard.try_recv()
        {
            batch.push(heard);
        }
        self.handle_heard(&mut batch);
        if inlets.kept.has_changed().unwrap_or(false) {
            let up_to = *inlets.kept.borrow_and_update();
            self.handle_kept(up_to);
        }
    }

    fn handle_heard(&mut self, batch: &mut Vec<Heard>) {
        let Some(cluster) = &mut self.cluster else {
            return batch.clear();
        };
        let now = now();
        for heard in batch.drain(..) {
            if let Heard::Overdue(records) = &heard {
                for record in records {
                    self.peers.tell_record(record, now);
                }
            }
            cluster.handle(heard, &mut self.proxy, now);
        }
    }

    fn handle_kept(&mut self, up_to: u64) {
        self.proxy.kept(up_to, now());
    }

    /// Tells the disk and the others what has happened.
    pub(super) fn take_news(&mut self) {
        let now = now();
        while let Some(news) = self.proxy.poll_news() {
            let number = news.number;
            if let Some(cluster) = &mut self.cluster {
                if let Some(location) = &mut self.location {
                    location.note(news.event.clone(), number);
                }
                let peers = &mut self.peers;
                if cluster.note(news, |record| peers.tell_record(&record, now)) {
                    self.proxy.acknowledge(number, now);
                }
            } else if let Some(location) = &mut self.location {
                location.note(news.event, number);
            }
        }
        if let Some(location) = &mut self.location {
            location.flush(self.proxy.registrar());
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.flush(&self.proxy);
        }
    }
}
