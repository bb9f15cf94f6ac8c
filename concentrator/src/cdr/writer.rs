//! The thread that writes records into the file, whole lines and many at once.
//!
//! It is told to open the file anew when something has renamed it (logrotate). A disk that does not
//! take a record loses it: it is counted, the log says why once, and the file is opened anew with the
//! next ones.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use super::Shared;

/// Octets of lines that are written at once.
const BATCH: usize = 64 * 1024;

pub(super) enum Job {
    Line(String),
    /// See whether the file is to be opened anew.
    Look,
    /// Nothing comes any more.
    End,
}

/// Opens the file to add to it; records name who calls whom, so others do not read them.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).open(path)
}

/// Starts the thread; it ends with [`Job::End`].
pub(super) fn start(
    path: PathBuf,
    file: File,
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
) -> std::io::Result<JoinHandle<()>> {
    let writer = Writer {
        path,
        file: Some(file),
        failing: false,
        shared,
    };
    std::thread::Builder::new()
        .name("cdr".into())
        .spawn(move || writer.run(&jobs))
}

struct Writer {
    path: PathBuf,
    file: Option<File>,
    failing: bool,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        let mut batch = String::with_capacity(BATCH);
        while let Ok(first) = jobs.recv() {
            batch.clear();
            let mut lines = 0;
            let mut over = false;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Line(line) => {
                        batch.push_str(&line);
                        batch.push('\n');
                        lines += 1;
                    }
                    Job::Look => {}
                    Job::End => over = true,
                }
                next = (batch.len() < BATCH)
                    .then(|| jobs.try_recv().ok())
                    .flatten();
            }
            if self.shared.reopen.swap(false, Ordering::Relaxed) {
                self.file = None;
                // Made at once, so that who has renamed the old one sees the new one.
                self.opened();
            }
            if lines > 0 {
                self.write(batch.as_bytes(), lines);
            }
            if over {
                return;
            }
        }
    }

    fn opened(&mut self) -> Option<&mut File> {
        if self.file.is_none() {
            match open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.complain(&error),
            }
        }
        self.file.as_mut()
    }

    fn write(&mut self, batch: &[u8], lines: u64) {
        let written = self.opened().map(|file| file.write_all(batch));
        let counters = &self.shared.counters;
        match written {
            Some(Ok(())) => {
                counters.written.fetch_add(lines, Ordering::Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(file = %self.path.display(), "records of calls are written again");
                }
            }
            failed => {
                counters.failed.fetch_add(lines, Ordering::Relaxed);
                if let Some(Err(error)) = failed {
                    self.complain(&error);
                }
                self.file = None;
            }
        }
    }

    fn complain(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(file = %self.path.display(), %error, "records of calls are lost");
        }
    }
}

#[cfg(test)]
mod tests;
