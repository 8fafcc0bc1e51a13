//! The data plane: accepts requests, finds the app by host name, picks an instance, streams both ways, writes one access
//! line. Fed by a whole routing table behind one atomic pointer; the table is on disk too, so it serves without anyone.
//!
//! Must not: call the API, the store or DNS for a request; block on a slow reader of its access lines; believe
//! forwarding headers of clients.
//!
//! The way of a request: [`worker`] accepts, [`conn`] finds the head, [`h1`] reads it strictly and writes it anew ([`h2`] and [`h3`] turn HTTP/2 and HTTP/3 into it),
//! [`table`] finds the app, [`upstream`] a connection to an instance, [`exchange`] moves both contents with [`pump`],
//! [`access`] tells of it. What is not HTTP goes through [`l4`].

mod access;
mod balance;
mod choice;
mod clients;
mod codes;
mod conn;
mod exchange;
mod expose;
mod find;
mod h1;
mod h2;
mod h3;
mod handover;
mod instances;
mod io;
mod l4;
mod metrics;
mod persist;
mod policy;
pub mod proxy_protocol;
mod pump;
mod registry;
mod router;
mod sending;
mod settings;
mod shared;
mod signals;
mod stats;
mod sticky;
mod table;
mod tls;
mod upstream;
mod waiting;
mod worker;

pub use access::{AccessLines, AccessQueue, AccessSink};
pub use codes::Code;
pub use flex_model::Cidr;
pub use handover::{Handover, Predecessor};
pub use metrics::{Metrics, MetricsSnapshot};
pub use router::{Router, RouterError};
pub use settings::{Limits, MinTls, RouterSettings, Timeouts, TlsSettings};
pub use signals::SignalMeter;
