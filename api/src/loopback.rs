//! Which names are this machine's own.

use std::net::IpAddr;

/// True for `localhost` and for a loopback address, one of IPv6 with its brackets or without.
pub(crate) fn names_this_machine(host: &str) -> bool {
    let address = || host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address().is_ok_and(|address| address.is_loopback())
}
