//! Who a client is, and whether it may come in.

use flex_model::Cidr;
use std::net::IpAddr;

/// The client, by the chain of `X-Forwarded-For` as it goes to instances: its last item is who connected. Proxies that are
/// trusted say who is behind them; the word of anyone else is not believed. None: the chain is not one of ours.
pub(super) fn client(chain: &str, trusted: &[Cidr]) -> Option<IpAddr> {
    let mut client = None;
    for item in chain.rsplit(',') {
        let Ok(ip) = item.trim().parse::<IpAddr>() else { break };
        let ip = ip.to_canonical();
        client = Some(ip);
        if !trusted.iter().any(|range| range.contains(ip)) {
            break;
        }
    }
    client
}

/// `deny` wins; without an `allow` everyone else may.
pub(super) fn may_enter(ip: IpAddr, allow: Option<&Vec<Cidr>>, deny: Option<&Vec<Cidr>>) -> bool {
    let has = |list: &Vec<Cidr>| list.iter().any(|range| range.contains(ip));
    !deny.is_some_and(has) && allow.is_none_or(has)
}
