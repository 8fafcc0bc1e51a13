//! What a request says about where it goes: its route, and the instance that its cookie names.

use crate::{
    h1::request::Request,
    metrics::Counters,
    proxy_protocol::{self, Origin},
    sticky,
    table::{App, Backend},
    worker::Worker,
};
use flex_model::{AppId, InstanceId, Policy};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;

impl Worker {
    /// Where a connection comes from, by its own addresses or by what a load balancer in front says. None: it is refused.
    pub(crate) async fn origin(&self, stream: &mut TcpStream, peer: SocketAddr, local: SocketAddr) -> Option<Origin> {
        let balancers = &self.shared.settings.proxy_protocol_http;
        if balancers.is_empty() {
            return Some(Origin::direct(peer, local));
        }
        let refuse = |why: &dyn std::fmt::Display| {
            Counters::add(&self.counters.proxy_refused, 1);
            tracing::info!(peer = %peer, "a connection was refused: {why}");
            None
        };
        if !balancers.iter().any(|range| range.contains(peer.ip())) {
            return refuse(&"it does not come through a load balancer");
        }
        match proxy_protocol::accept(stream, peer, local).await {
            Ok(origin) => Some(origin),
            Err(e) => refuse(&e),
        }
    }

    /// What the newest table has for a request.
    pub(crate) fn find(&self, request: &Request) -> Option<Arc<App>> {
        let route = self.shared.routes.find(&request.host, request.path())?;
        let wanted = self.wanted(route.policy(), route.app(), request);
        route.choose_for(wanted, rand::random()).cloned()
    }

    /// The instance that a request's cookie names, where the route keeps clients with theirs.
    pub(crate) fn wanted(&self, policy: &Policy, app: AppId, request: &Request) -> Option<InstanceId> {
        if !policy.sticky {
            return None;
        }
        let key = self.shared.routes.cookie_key();
        sticky::wanted(key.as_ref().as_ref()?, app, &request.upstream)
    }

    /// The cookie to set, if the client is to come back and its own cookie does not say where to.
    pub(crate) fn cookie(&self, app: &App, wanted: Option<InstanceId>, got: &Backend, scheme: &str) -> Option<String> {
        if !app.policy.sticky || wanted == Some(got.instance) {
            return None;
        }
        let key = self.shared.routes.cookie_key();
        Some(sticky::cookie(key.as_ref().as_ref()?, app.id, got.instance, scheme == "https"))
    }
}
