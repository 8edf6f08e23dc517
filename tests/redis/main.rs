//! Do replicas that share a Redis keep one limit, and what becomes of it when Redis fails? Against real redis-servers that
//! the tests start on ports of their own.
#![cfg(feature = "redis")]

mod cluster;
mod figures;
mod kit;
mod load;
mod network;
mod outages;
mod script;
mod sharing;
