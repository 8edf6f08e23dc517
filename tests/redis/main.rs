//! Do replicas that share a Redis keep one limit, and what becomes of it when Redis fails? Against real redis-servers that
//! the tests start on ports of their own.
#![cfg(feature = "redis")]

mod kit;
mod load;
mod outages;
mod sharing;
