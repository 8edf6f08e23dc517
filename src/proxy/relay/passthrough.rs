//! Bodies that are not read: binary audio, file contents, very large JSON. A cut shows as a cut.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Carried;
use crate::{
    limits::Spent,
    proxy::error::Rejection,
    upstream::{Inflow, Why},
};

/// A body that passes as it comes.
pub struct Pass {
    begun: Bytes,
    rest: Inflow,
    /// Set before the first byte goes out.
    pub(super) carried: Option<Carried>,
}

impl Pass {
    pub(super) fn new(begun: Bytes, rest: Inflow) -> Self {
        Self { begun, rest, carried: None }
    }

    /// Bytes still to come, where that is known.
    pub(super) fn exact_size(&self) -> Option<u64> {
        self.rest.exact_size().map(|rest| rest + self.begun.len() as u64)
    }

    /// The next bytes. An error ends the connection, so that the app sees that its answer was cut.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>> {
        if !self.begun.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.begun))));
        }
        let data = ready!(self.rest.poll_data(cx));
        Poll::Ready(match data {
            Some(Ok(data)) => Some(Ok(data)),
            Some(Err(why)) => {
                self.broken(&why);
                Some(Err(format!("{why:?}").into()))
            }
            None => {
                if let Some(carried) = &mut self.carried {
                    carried.settle(Spent::Charge);
                }
                None
            }
        })
    }

    fn broken(&mut self, why: &Why) {
        if let Some(carried) = &mut self.carried {
            carried.settle(Spent::Charge);
            carried.record.error = Rejection::from(why.clone()).code().map(|code| code.into_owned());
        }
    }
}
