//! HTTP/1.1 on the wire: heads and bodies, parsed as strictly as RFC 9112 allows. Everything here is a pure function or a
//! pure state machine over bytes, so that it can be fuzzed; this is where request smuggling would live.

pub(crate) mod carry;
pub(crate) mod chunk;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod scan;
