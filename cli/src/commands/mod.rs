//! One file a topic. Each function is one command: read what is needed, ask the API, show the answer.

pub mod access;
pub mod apps;
pub mod authorizations;
pub mod buildpacks;
pub mod builds;
pub mod certs;
pub mod config;
pub mod cp;
pub mod deploy;
pub mod doctor;
pub mod domains;
pub mod drains;
pub mod exec;
pub mod keys;
pub mod logs;
pub mod port_forward;
pub mod ps;
pub mod releases;
pub mod routes;
pub mod run;
pub mod seen;
pub mod session;
