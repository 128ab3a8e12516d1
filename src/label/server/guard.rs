//! Checks requests before they are read: the host name must be ours, the page that sent it ours, and the rate limited.

use crate::error::{Error, Result};
use axum::http::{HeaderMap, Uri, header};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The host names and origins that the server accepts. A request under another name may come from a foreign page whose
/// domain was made to resolve to this machine (DNS rebinding).
pub struct AllowedHosts {
    /// Accepted `Host` headers, in lower case.
    hosts: Vec<String>,
    /// Accepted `Origin` headers.
    origins: Vec<String>,
    url: String,
}

impl AllowedHosts {
    /// Derives the accepted names from the bound address and the public URL of a proxy, if there is one.
    ///
    /// Errors: the public URL is invalid; it is missing although the address is for all interfaces.
    pub fn new(local: SocketAddr, public: Option<&str>) -> Result<Self> {
        let port = local.port();
        let mut hosts = vec![local.to_string()];
        if local.ip().is_loopback() {
            hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(|name| format!("{name}:{port}")));
        }
        if port == 80 {
            let bare: Vec<String> = hosts.iter().filter_map(|h| h.strip_suffix(":80").map(String::from)).collect();
            hosts.extend(bare);
        }
        let mut origins: Vec<String> = hosts.iter().map(|h| format!("http://{h}")).collect();
        let mut url = format!("http://{local}");
        if let Some(public) = public {
            let wrong = || {
                Error::user(format!(
                    "--public {public:?}: expected http://HOST or https://HOST, with a port where needed"
                ))
                .hint("it is the URL that people type into their browser, without a path")
            };
            let uri: Uri = public.trim_end_matches('/').parse().map_err(|_| wrong())?;
            let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
            if !matches!(scheme, "http" | "https")
                || !matches!(uri.path(), "" | "/")
                || authority.as_str().contains('@')
            {
                return Err(wrong());
            }
            let given = authority.as_str().to_lowercase();
            // Browsers omit the default port of the scheme; other clients may send it.
            let usual = if scheme == "https" { ":443" } else { ":80" };
            let bare = given.strip_suffix(usual).unwrap_or(&given).trim_end_matches(':').to_string();
            let mut names = vec![bare.clone()];
            if !bare.rsplit(']').next().is_some_and(|end| end.contains(':')) {
                names.push(bare.clone() + usual);
            }
            url = format!("{scheme}://{bare}");
            origins.extend(names.iter().map(|name| format!("{scheme}://{name}")));
            hosts.extend(names);
        } else if local.ip().is_unspecified() {
            return Err(Error::user(format!("{local}: an address for all networks needs the name people will use"))
                .hint(format!("--public http://NAME:{port}, or the URL of the TLS proxy in front of it")));
        }
        Ok(Self { hosts, origins, url })
    }

    /// Returns the URL under which people reach the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Checks the headers of a request; the error says why it is refused.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("\u{0}").to_lowercase());
        if headers.get_all(header::HOST).iter().count() != 1
            || !text(header::HOST.as_str()).is_some_and(|h| self.hosts.contains(&h))
        {
            return Err("this server does not accept requests under this host name");
        }
        if text(header::ORIGIN.as_str()).is_some_and(|o| !self.origins.contains(&o)) {
            return Err("a page of another site asks");
        }
        if text("sec-fetch-site").is_some_and(|s| !matches!(s.as_str(), "same-origin" | "none")) {
            return Err("a page of another site asks");
        }
        Ok(())
    }
}

/// Limits the events per second of each key, with bursts (token buckets).
pub struct RateLimiter<K> {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, (f64, Instant)>>,
}

/// Number of buckets from which on full ones are removed.
const BUCKETS: usize = 10_000;

impl<K: Hash + Eq> RateLimiter<K> {
    /// Creates a limiter that allows `rate` events per second and `burst` events at once, for each key.
    pub fn new(rate: f64, burst: f64) -> Self {
        Self { rate, burst, buckets: Mutex::new(HashMap::new()) }
    }

    /// Counts an event; returns false if it exceeds the limit.
    pub fn take(&self, key: K) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled =
            |left: f64, since: Instant| (left + now.duration_since(since).as_secs_f64() * self.rate).min(self.burst);
        if buckets.len() >= BUCKETS {
            buckets.retain(|_, (left, since)| filled(*left, *since) < self.burst);
        }
        let (left, since) = buckets.entry(key).or_insert((self.burst, now));
        *left = filled(*left, *since);
        *since = now;
        let fits = *left >= 1.0;
        if fits {
            *left -= 1.0;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
            .collect::<Vec<(axum::http::HeaderName, _)>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut all, (k, v)| {
                all.append(k, v);
                all
            })
    }

    #[test]
    fn only_our_own_names_and_pages_are_answered() {
        let hosts = AllowedHosts::new("127.0.0.1:8321".parse().unwrap(), Some("https://Label.example.org")).unwrap();
        assert_eq!(hosts.url(), "https://label.example.org");
        for good in [
            &[("host", "127.0.0.1:8321")][..],
            &[("host", "localhost:8321"), ("origin", "http://localhost:8321")],
            &[("host", "LABEL.example.org"), ("origin", "https://label.example.org")],
            &[("host", "127.0.0.1:8321"), ("sec-fetch-site", "same-origin")],
        ] {
            assert_eq!(hosts.check(&headers(good)), Ok(()), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("host", "evil.example")],
            &[("host", "127.0.0.1")],
            &[("host", "127.0.0.1:8321.evil.example")],
            &[("host", "127.0.0.1:8321"), ("host", "evil.example")],
            &[("host", "127.0.0.1:8321"), ("origin", "http://evil.example")],
            &[("host", "127.0.0.1:8321"), ("origin", "null")],
            &[("host", "127.0.0.1:8321"), ("origin", "http://label.example.org")],
            &[("host", "127.0.0.1:8321"), ("sec-fetch-site", "cross-site")],
            &[("host", "127.0.0.1:8321"), ("sec-fetch-site", "same-site")],
        ] {
            assert!(hosts.check(&headers(bad)).is_err(), "{bad:?}");
        }
    }

    /// Browsers omit the scheme's default port from `Host` and `Origin`, whether the user typed it or not.
    #[test]
    fn the_port_of_the_scheme_may_be_named_or_left_out() {
        let at = |local: &str, public| AllowedHosts::new(local.parse().unwrap(), public).unwrap();
        for (public, host) in [
            ("https://box:443", "box"),
            ("https://box", "box:443"),
            ("https://box", "box"),
            ("http://box:80", "box"),
            ("http://box/", "box:80"),
            ("http://[2001:db8::1]:80", "[2001:db8::1]"),
            ("http://[2001:db8::1]", "[2001:db8::1]:80"),
        ] {
            let hosts = at("127.0.0.1:8321", Some(public));
            let scheme = public.split(':').next().unwrap();
            let origin = format!("{scheme}://{host}");
            assert_eq!(hosts.check(&headers(&[("host", host), ("origin", &origin)])), Ok(()), "{public} {host}");
            assert!(!hosts.url().ends_with("80") && !hosts.url().ends_with("443"), "{}", hosts.url());
        }
        for (public, host) in [("https://box", "box:80"), ("http://box:80", "box:443"), ("http://box:8080", "box")] {
            assert!(at("127.0.0.1:8321", Some(public)).check(&headers(&[("host", host)])).is_err(), "{public} {host}");
        }
        let own = at("127.0.0.1:80", None);
        assert_eq!(own.check(&headers(&[("host", "localhost"), ("origin", "http://localhost")])), Ok(()));
    }

    #[test]
    fn an_open_address_needs_a_name() {
        assert!(AllowedHosts::new("0.0.0.0:80".parse().unwrap(), None).is_err());
        assert!(AllowedHosts::new("0.0.0.0:80".parse().unwrap(), Some("http://box:80")).is_ok());
        for wrong in ["box", "ftp://box", "http://box/path", "http://user@box", ""] {
            assert!(AllowedHosts::new("127.0.0.1:80".parse().unwrap(), Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bursts_are_allowed_and_floods_are_not() {
        let limit = RateLimiter::new(0.001, 3.0);
        assert_eq!([(); 5].map(|()| limit.take("a")), [true, true, true, false, false]);
        assert!(limit.take("b"));
    }
}
