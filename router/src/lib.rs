//! The data plane: accepts requests, finds the app by host name, picks an instance, streams both ways, writes one access
//! line. Fed by a whole routing table behind one atomic pointer; the table is on disk too, so it serves without anyone.
//!
//! Must not: call the API, the store or DNS for a request; block on a slow reader of its access lines; believe
//! forwarding headers of clients.
