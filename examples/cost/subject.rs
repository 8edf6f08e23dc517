//! The servers that `cost -- scale` measures.

use std::{io, net::SocketAddr, path::Path, process::Command};

use tempfile::TempDir;

use super::{
    external,
    memory::QueueingShield,
    process::{PROXY_CORE, Running, this_program},
};

/// A running server.
pub(crate) enum Subject {
    Shield(QueueingShield),
    Other { running: Running, _home: Option<TempDir> },
}

/// The kind of server.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// Configured for 10 000 connections and waiting requests.
    Shield,
    BareHyper,
    Nginx,
    /// No proxy: its cost is about the minimum for one side of a proxy on this runtime.
    ResponseOnly,
}

/// What is needed to start a server of a kind.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'p> {
    pub(crate) program: &'p Path,
    pub(crate) upstream: SocketAddr,
    pub(crate) kind: Kind,
}

impl Setup<'_> {
    pub(crate) fn start(self) -> io::Result<Subject> {
        let upstream = self.upstream;
        Ok(match self.kind {
            Kind::Shield => Subject::Shield(QueueingShield::start(self.program, upstream)?),
            Kind::BareHyper => other(|listen| this_program(&["bare", &listen.to_string(), &upstream.to_string()]))?,
            Kind::ResponseOnly => other(|listen| this_program(&["response-only", &listen.to_string()]))?,
            Kind::Nginx => {
                let (running, home) = external::nginx(upstream)?.ok_or(io::ErrorKind::NotFound)?;
                Subject::Other { running, _home: Some(home) }
            }
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self.kind {
            Kind::Shield => "shield",
            Kind::BareHyper => "bare hyper",
            Kind::Nginx => "nginx",
            Kind::ResponseOnly => "a server that only answers",
        }
    }
}

fn other(role: impl FnOnce(SocketAddr) -> io::Result<Command>) -> io::Result<Subject> {
    Ok(Subject::Other { running: Running::start_role(PROXY_CORE, role)?, _home: None })
}

impl Subject {
    pub(crate) fn running(&self) -> &Running {
        match self {
            Self::Shield(shield) => &shield.running,
            Self::Other { running, .. } => running,
        }
    }
}
