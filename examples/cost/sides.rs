//! The proxies that are measured, and the upstream behind them.

use std::{io, net::SocketAddr, path::Path, process::Command};

use tempfile::TempDir;

use super::{
    beside,
    memory::QueueingShield,
    process::{Running, THEIRS, ourselves},
};

/// Its process.
pub(crate) enum Subject {
    Shield(QueueingShield),
    Other { running: Running, _home: Option<TempDir> },
}

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Who {
    /// With room for ten thousand connections.
    Shield,
    BareHyper,
    Nginx,
    /// No proxy: about the least cost of one side of a proxy on this runtime.
    OnlyAnswers,
}

/// The measured program and its upstream.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'p> {
    pub(crate) program: &'p Path,
    pub(crate) upstream: SocketAddr,
    pub(crate) who: Who,
}

impl Sides<'_> {
    pub(crate) fn start(self) -> io::Result<Subject> {
        let upstream = self.upstream;
        Ok(match self.who {
            Who::Shield => Subject::Shield(QueueingShield::start(self.program, upstream)?),
            Who::BareHyper => other(|listen| ourselves(&["bare", &listen.to_string(), &upstream.to_string()]))?,
            Who::OnlyAnswers => other(|listen| ourselves(&["only-answer", &listen.to_string()]))?,
            Who::Nginx => {
                let (running, home) = beside::nginx(upstream)?.ok_or(io::ErrorKind::NotFound)?;
                Subject::Other { running, _home: Some(home) }
            }
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self.who {
            Who::Shield => "shield",
            Who::BareHyper => "bare hyper",
            Who::Nginx => "nginx",
            Who::OnlyAnswers => "a server that only answers",
        }
    }
}

fn other(role: impl FnOnce(SocketAddr) -> io::Result<Command>) -> io::Result<Subject> {
    Ok(Subject::Other { running: Running::start_role(THEIRS, role)?, _home: None })
}

impl Subject {
    pub(crate) fn running(&self) -> &Running {
        match self {
            Self::Shield(shield) => &shield.running,
            Self::Other { running, .. } => running,
        }
    }
}
