//! Bodies that pass unread: binary audio, file contents, very large JSON. If one is truncated, the app sees that, too.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use groq_limiter::ActualUsage;

use super::context::ResponseContext;
use crate::{
    proxy::error::Rejection,
    upstream::{ExchangeError, ResponseBody},
};

/// An unread body.
pub struct Pass {
    begun: Bytes,
    rest: ResponseBody,
    /// Set before the first byte is sent.
    pub(super) context: Option<ResponseContext>,
}

impl Pass {
    pub(super) fn new(begun: Bytes, rest: ResponseBody) -> Self {
        Self { begun, rest, context: None }
    }

    /// Bytes left, if the upstream stated the length.
    pub(super) fn exact_size(&self) -> Option<u64> {
        self.rest.exact_size().map(|rest| rest + self.begun.len() as u64)
    }

    /// The next bytes. An error resets the connection or stream, so the app sees that its response was truncated.
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
            Some(Err(error)) => {
                self.broken(&error);
                Some(Err(format!("{error:?}").into()))
            }
            None => {
                if let Some(context) = &mut self.context {
                    context.settle(ActualUsage::Unknown);
                }
                None
            }
        })
    }

    fn broken(&mut self, error: &ExchangeError) {
        if let Some(context) = &mut self.context {
            context.settle(ActualUsage::Unknown);
            context.record.error = Rejection::from(error.clone()).code().map(|code| code.into_owned());
        }
    }
}
