//! One child process and its pipes.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::ProbeCommand;

/// An answer longer than this is none.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// How much of what the child last wrote to stderr is kept for the error message.
const MAX_LAST_WORDS_BYTES: usize = 400;
/// How long is waited for a killed child to be gone.
const BURIAL: Duration = Duration::from_millis(500);
const BURIAL_POLL: Duration = Duration::from_millis(2);

/// Why a child did not answer.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The program cannot be run.
    #[error("cannot start the probe `{}`: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No answer in time: a driver hangs.
    #[error("the probe did not answer within {deadline_ms} ms")]
    Hangs {
        /// How long it was waited for, in milliseconds.
        deadline_ms: u128,
    },
    /// It ended instead of answering.
    #[error("the probe ended{}{}", how(.status), said(.last_words))]
    Ended {
        /// How, if that is known.
        status: Option<ExitStatus>,
        /// The end of what it wrote to stderr.
        last_words: String,
    },
    /// Its answer is too long.
    #[error("the probe answered with more than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    /// Its answer is not to the question.
    #[error("the probe answered what it was not asked")]
    Confused,
    /// Its answer is of no form that is known.
    #[error("the probe's answer cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// The pipes to it failed.
    #[error("cannot talk to the probe: {0}")]
    Pipe(io::Error),
    /// It failed lately and is not started again yet.
    #[error("the probe is started again in {left_ms} ms; {cause}")]
    Resting {
        /// Until it is started again, in milliseconds.
        left_ms: u128,
        /// The failure.
        cause: String,
    },
    /// It was killed, but waits in a driver and does not go.
    #[error("the probe (pid {pid}) hangs in a driver and cannot be killed")]
    Undead {
        /// Its process id.
        pid: u32,
    },
}

/// A running child.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Gone once the child has closed it.
    stderr: Option<ChildStderr>,
    unread: Vec<u8>,
    /// How much of `unread` was already looked through for the end of a line.
    searched: usize,
    last_words: Vec<u8>,
}

impl Worker {
    /// Starts the command in a process group of its own, so that a Ctrl-C is not for it.
    pub(super) fn start(command: &ProbeCommand, flag: Option<&str>) -> Result<Self, LinkError> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .args(flag)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| LinkError::Start {
                program: command.program.clone(),
                source,
            })?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            stdin: stdin.expect("stdin is piped"),
            stdout: stdout.expect("stdout is piped"),
            stderr: child.stderr.take(),
            child,
            unread: Vec::new(),
            searched: 0,
            last_words: Vec::new(),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line. It is shorter than a pipe holds, and the child has read all before, so that
    /// this does not block.
    pub(super) fn tell(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        let mut line = serde_json::to_vec(message).map_err(LinkError::Unreadable)?;
        line.push(b'\n');
        self.stdin
            .write_all(&line)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => self.ended(),
                _ => LinkError::Pipe(error),
            })
    }

    /// Waits for one line and reads it as `T`.
    pub(super) fn answer<T: DeserializeOwned>(
        &mut self,
        deadline: Duration,
    ) -> Result<T, LinkError> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(line) = self.line() {
                return serde_json::from_slice(&line).map_err(LinkError::Unreadable);
            }
            if self.unread.len() > MAX_ANSWER_BYTES {
                return Err(LinkError::TooLong);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Hangs {
                    deadline_ms: deadline.as_millis(),
                });
            }
            self.take_in(left)?;
        }
    }

    /// Kills it. Answers whether it is gone.
    pub(super) fn kill(&mut self) -> bool {
        let _ = self.child.kill();
        let end = Instant::now() + BURIAL;
        while !self.is_gone() && Instant::now() < end {
            thread::sleep(BURIAL_POLL);
        }
        self.is_gone()
    }

    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let new = self.unread.get(self.searched..)?;
        let end = new.iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.unread.len();
            return None;
        };
        self.searched = 0;
        Some(self.unread.drain(..=end).collect())
    }

    /// Waits until the child says something, on either of its outputs, and takes it in.
    fn take_in(&mut self, left: Duration) -> Result<(), LinkError> {
        let (speaks, complains) = self.wait(left).map_err(LinkError::Pipe)?;
        let mut buffer = [0; 16 << 10];
        if complains && let Some(stderr) = &mut self.stderr {
            match stderr.read(&mut buffer).map_err(LinkError::Pipe)? {
                0 => self.stderr = None,
                n => self.listen(&buffer[..n]),
            }
        }
        if speaks {
            match self.stdout.read(&mut buffer).map_err(LinkError::Pipe)? {
                0 => return Err(self.ended()),
                n => self.unread.extend_from_slice(&buffer[..n]),
            }
        }
        Ok(())
    }

    fn wait(&self, left: Duration) -> io::Result<(bool, bool)> {
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let outputs = [
            Some(self.stdout.as_fd()),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        let mut polled: Vec<_> = outputs
            .iter()
            .flatten()
            .map(|output| PollFd::from_borrowed_fd(*output, PollFlags::IN))
            .collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |place: usize| {
            let output: Option<&PollFd<'_>> = polled.get(place);
            output.is_some_and(|output| !output.revents().is_empty())
        };
        Ok((ready(0), ready(1)))
    }

    fn listen(&mut self, complaint: &[u8]) {
        tracing::debug!(text = %String::from_utf8_lossy(complaint).trim_end(), "the device probe says");
        self.last_words.extend_from_slice(complaint);
        let surplus = self.last_words.len().saturating_sub(MAX_LAST_WORDS_BYTES);
        self.last_words.drain(..surplus);
    }

    /// It closed its output. It is killed if it did not end, so that its end can be told.
    fn ended(&mut self) -> LinkError {
        let _ = self.take_in_last_words();
        let end = Instant::now() + BURIAL;
        while !self.is_gone() && Instant::now() < end {
            thread::sleep(BURIAL_POLL);
        }
        LinkError::Ended {
            status: self.child.try_wait().ok().flatten(),
            last_words: String::from_utf8_lossy(&self.last_words).trim().to_owned(),
        }
    }

    fn take_in_last_words(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while let (_, true) = self.wait(BURIAL_POLL)? {
            let Some(stderr) = &mut self.stderr else {
                break;
            };
            match stderr.read(&mut buffer)? {
                0 => self.stderr = None,
                n => self.listen(&buffer[..n]),
            }
        }
        Ok(())
    }
}

impl Drop for Worker {
    /// Its input ends with us, which ends it; killing makes that sure and quick.
    fn drop(&mut self) {
        if !self.is_gone() {
            self.kill();
        }
    }
}

fn how(status: &Option<ExitStatus>) -> String {
    let status = status.map(|status| format!(" ({status})"));
    status.unwrap_or_default()
}

fn said(last_words: &str) -> String {
    let words: Vec<_> = last_words.split_whitespace().collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(", saying: {}", words.join(" ")),
    }
}
