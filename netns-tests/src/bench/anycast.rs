//! What anycast is worth in the topology `internet`: whether it picks the nearest edge, how long media
//! paths are, and how long the service is away when an edge goes. No peer: the table of
//! `docs/anycast-measurements.md` has what others have published beside it.
//!
//! Beside the JSON lines each part leaves a table (`*.md`), its raw figures (`*.json`) and pictures (`*.svg`)
//! in its folder.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value};

use super::{Conditions, Outcome};

mod convergence;
mod media;
mod path;
mod plot;
mod proximity;

pub(super) use convergence::run as run_convergence;
pub(super) use media::run as run_media;
pub(super) use proximity::run as run_proximity;

pub(super) fn run(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = run_proximity(folder)?;
    outcomes.extend(run_media(folder)?);
    outcomes.extend(run_convergence(folder)?);
    Ok(outcomes)
}

fn outcome(bench: &'static str, unit: &'static str, ours: f64, of: u64, more: Value) -> Outcome {
    let mut conditions = Conditions::of(of, of, std::time::Duration::from_secs(1), 0);
    conditions.rate_per_second = 0.0;
    conditions.more = more;
    Outcome {
        bench,
        unit,
        ours,
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    }
}

/// The value below which so many percent of them are; NaN of none.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() * percent / 100).min(last);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
