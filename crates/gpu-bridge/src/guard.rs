//! What every request must pass before anything else looks at it: which server it means, which page it
//! comes from, and what its body claims to be. A browser that is tricked into calling the broker fails here.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN};
use axum::http::{HeaderMap, Method, Uri};
use gpu_api::{ErrorCode, Problem};

use crate::shown::shown;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A host as the `Host` header names it, with its port where that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Lower case; an IPv6 address in brackets.
    host: String,
    port: Option<u16>,
}

/// The origin of a page: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Why a text names no host or no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseOriginError {
    /// No host, or a port that is none.
    #[error("`{0}` is no host: expected `NAME` or `NAME:PORT`")]
    Host(String),
    /// Something else than an origin.
    #[error(
        "`{0}` is no origin: expected `http://NAME:PORT` or `https://NAME:PORT` and nothing behind it"
    )]
    Origin(String),
    /// An address that means every address.
    #[error("`{0}` means every address of the host, and no page comes from there")]
    Wildcard(String),
}

/// The names that this server answers to, and the pages that may call it.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    hosts: Vec<Authority>,
    origins: Vec<Origin>,
}

/// What the guard learned of a request that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// A page of another origin that the operator listed: it may read the answer.
    pub(crate) listed_origin: Option<HeaderValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Guard {
    /// A guard that knows the loopback names, the addresses listened on, and what the operator listed.
    pub(crate) fn new(listen: &[SocketAddr], hosts: &[Authority], origins: &[Origin]) -> Self {
        let bound = listen
            .iter()
            .filter(|address| !address.ip().is_unspecified());
        let bound = bound.map(|address| Authority {
            host: bracketed(address.ip()),
            port: Some(address.port()),
        });
        Self {
            hosts: bound.chain(hosts.iter().cloned()).collect(),
            origins: origins.to_vec(),
        }
    }

    /// Looks at a request before it is routed, whatever its method.
    pub(crate) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<Passed, Problem> {
        let host = self.host(uri, headers)?;
        let passed = self.origin(headers, &host)?;
        if passed.listed_origin.is_none() {
            fetch_site(headers)?;
        }
        if has_body {
            content_type(headers)?;
        }
        Ok(passed)
    }

    fn host(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
        let text = single(headers, &HOST)
            .map_err(|Several| host_refused("more than one Host header"))?
            .ok_or_else(|| host_refused("no Host header"))?;
        let host = self.known_host(text)?;
        // A request target with a host of its own overrules the header in some servers; here both must be known.
        match uri.authority() {
            Some(target) if self.known_host(target.as_str())? != host => Err(host_refused(
                "the request target and the Host header differ",
            )),
            _ => Ok(host),
        }
    }

    fn known_host(&self, text: &str) -> Result<Authority, Problem> {
        let host: Authority = text
            .parse()
            .map_err(|error: ParseOriginError| host_refused(&error.to_string()))?;
        let loopback = LOOPBACK_NAMES.contains(&host.host.as_str());
        match loopback || self.hosts.iter().any(|known| known.admits(&host)) {
            true => Ok(host),
            false => Err(host_refused(&format!("this broker is not called `{host}`"))),
        }
    }

    fn origin(&self, headers: &HeaderMap, host: &Authority) -> Result<Passed, Problem> {
        let own = Passed {
            listed_origin: None,
        };
        let Some(text) = single(headers, &ORIGIN)
            .map_err(|Several| origin_refused("more than one Origin header"))?
        else {
            return Ok(own);
        };
        let origin: Origin = text
            .parse()
            .map_err(|error: ParseOriginError| origin_refused(&error.to_string()))?;
        if self.origins.contains(&origin) {
            return Ok(Passed {
                listed_origin: headers.get(ORIGIN).cloned(),
            });
        }
        match origin.is_of(host) {
            true => Ok(own),
            false => Err(origin_refused(&format!(
                "pages of `{origin}` may not call this broker"
            ))),
        }
    }
}

/// Whether this is a browser asking what a page of another origin may do.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key("access-control-request-method")
}

/// The browser's own word on where the page is, when it gives one.
fn fetch_site(headers: &HeaderMap) -> Result<(), Problem> {
    let cross_site = || origin_refused("a page of another site may not call this broker");
    match single(headers, &SEC_FETCH_SITE).map_err(|Several| cross_site())? {
        None | Some("same-origin" | "same-site" | "none") => Ok(()),
        Some(_) => Err(cross_site()),
    }
}

/// A form or plain text can be sent by any page without asking; JSON cannot.
fn content_type(headers: &HeaderMap) -> Result<(), Problem> {
    match single(headers, &CONTENT_TYPE) {
        Ok(Some(value)) if value.eq_ignore_ascii_case("application/json") => Ok(()),
        Ok(_) | Err(Several) => Err(Problem::new(
            ErrorCode::UnsupportedMediaType,
            "the body must be sent as exactly `application/json`",
        )
        .with_hint("send the header `Content-Type: application/json`")),
    }
}

/// More than one header of a name that may be there once, or one that is no text.
struct Several;

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Several> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match (first, values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Several),
        (Some(_), Some(_)) => Err(Several),
    }
}

fn host_refused(detail: &str) -> Problem {
    Problem::new(ErrorCode::HostRefused, detail).with_hint(
        "call it by `localhost`, `127.0.0.1` or `[::1]`, or by the address it listens on",
    )
}

fn origin_refused(detail: &str) -> Problem {
    Problem::new(ErrorCode::OriginRefused, detail)
        .with_hint("add the page's origin to `allowed_origins` of `[http]` in gpu-manager.toml")
}

impl Authority {
    /// Whether `other` is this host, at this port if one is given here.
    fn admits(&self, other: &Self) -> bool {
        self.host == other.host && (self.port.is_none() || self.port == other.port)
    }
}

impl Origin {
    /// Whether a page of this origin came from the server that `host` names. The listener has no TLS.
    fn is_of(&self, host: &Authority) -> bool {
        let port = host.port.unwrap_or(Scheme::Http.default_port());
        self.scheme == Scheme::Http && self.host == host.host && self.port == port
    }
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl FromStr for Authority {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, ParseOriginError> {
        let refused = || ParseOriginError::Host(shown(text));
        let end = match text.starts_with('[') {
            true => text.find(']').ok_or_else(refused)? + 1,
            false => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at(end);
        let host = host_name(host).ok_or_else(refused)?;
        if is_wildcard(&host) {
            return Err(ParseOriginError::Wildcard(shown(text)));
        }
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(refused()),
            Some(digits) => Some(port_number(digits).ok_or_else(refused)?),
        };
        Ok(Self { host, port })
    }
}

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, ParseOriginError> {
        let refused = || ParseOriginError::Origin(shown(text));
        let (scheme, authority) = text.split_once("://").ok_or_else(refused)?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(refused()),
        };
        let Authority { host, port } = match authority.parse() {
            Ok(authority) => authority,
            Err(ParseOriginError::Wildcard(_)) => {
                return Err(ParseOriginError::Wildcard(shown(text)));
            }
            Err(_) => return Err(refused()),
        };
        Ok(Self {
            scheme,
            host,
            port: port.unwrap_or(scheme.default_port()),
        })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.host)?;
        match self.port == self.scheme.default_port() {
            true => Ok(()),
            false => write!(f, ":{}", self.port),
        }
    }
}

/// The name in lower case, or an IPv6 address in its one spelling and in brackets.
fn host_name(text: &str) -> Option<String> {
    const NAME_BYTES_MAX: usize = 253;
    if let Some(address) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(bracketed(IpAddr::V6(address)));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
    fits.then(|| text.to_ascii_lowercase())
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn is_wildcard(host: &str) -> bool {
    matches!(host, "0.0.0.0" | "[::]" | "0")
}

/// Digits only: the standard parser would take a sign.
fn port_number(digits: &str) -> Option<u16> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let listen = ["192.168.1.5:8080".parse().expect("an address")];
        let hosts = [
            "gpu.lab".parse().expect("a host"),
            "a.lab:9000".parse().expect("a host"),
        ];
        let origins = [
            "http://app.lab:3000".parse().expect("an origin"),
            "https://ui.lab".parse().expect("an origin"),
        ];
        Guard::new(&listen, &hosts, &origins)
    }

    fn check(headers: &[(&'static str, &str)], has_body: bool) -> Result<Passed, ErrorCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a header value"));
        }
        guard()
            .check(&Uri::from_static("/v1/status"), &map, has_body)
            .map_err(|problem| problem.code)
    }

    #[test]
    fn hosts_are_an_exact_list() {
        for (host, known) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("localhost:1", true),
            ("127.0.0.1:65535", true),
            ("[::1]:8080", true),
            ("[0:0:0:0:0:0:0:1]", true),
            ("192.168.1.5:8080", true),
            ("gpu.lab", true),
            ("gpu.lab:1234", true),
            ("a.lab:9000", true),
            ("a.lab", false),
            ("a.lab:9001", false),
            ("192.168.1.5", false),
            ("192.168.1.5:8081", false),
            ("127.0.0.2:8080", false),
            ("localhost.", false),
            ("localhost.evil.example", false),
            ("evil.example", false),
            ("localhost@evil.example", false),
            ("evil.example#localhost", false),
            ("localhost:8080:8080", false),
            ("localhost:", false),
            ("localhost:+80", false),
            ("localhost:65536", false),
            ("::1", false),
            ("[::1]evil", false),
            ("[::1", false),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("0:8080", false),
            ("2130706433", false),
            ("0x7f.1", false),
            ("10.0.0.1", false),
            ("printer.local", false),
            ("", false),
            (" ", false),
        ] {
            let answer = check(&[("host", host)], false).map(|_| ());
            let expected = if known {
                Ok(())
            } else {
                Err(ErrorCode::HostRefused)
            };
            assert_eq!(answer, expected, "{host:?}");
        }
        assert_eq!(check(&[], false), Err(ErrorCode::HostRefused), "no Host");
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(
            check(&twice, false),
            Err(ErrorCode::HostRefused),
            "two Hosts"
        );
    }

    #[test]
    fn a_request_target_cannot_name_another_host() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost:8080"));
        for (target, passes) in [
            ("http://localhost:8080/v1/status", true),
            ("http://127.0.0.1:8080/v1/status", false),
            ("http://evil.example/v1/status", false),
        ] {
            let answer = guard().check(&target.parse().expect("a target"), &headers, false);
            assert_eq!(answer.is_ok(), passes, "{target}");
        }
    }

    #[test]
    fn origins_are_compared_whole() {
        for (origin, passes, listed) in [
            ("http://localhost:8080", true, false),
            ("http://LOCALHOST:8080", true, false),
            ("http://app.lab:3000", true, true),
            ("https://ui.lab", true, true),
            ("https://ui.lab:443", true, true),
            ("http://ui.lab", false, false),
            ("https://ui.lab.evil.example", false, false),
            ("https://evil-ui.lab", false, false),
            ("https://ui.lab@evil.example", false, false),
            ("https://ui.lab/", false, false),
            ("https://ui.lab#x", false, false),
            ("http://app.lab", false, false),
            ("http://app.lab:30000", false, false),
            ("http://localhost", false, false),
            ("http://localhost:3000", false, false),
            ("https://localhost:8080", false, false),
            ("http://127.0.0.1:8080", false, false),
            ("http://0.0.0.0:8080", false, false),
            ("http://[::]:8080", false, false),
            ("null", false, false),
            ("file://", false, false),
            ("chrome-extension://abcdef", false, false),
            ("*", false, false),
            ("", false, false),
        ] {
            let answer = check(&[("host", "localhost:8080"), ("origin", origin)], false);
            match passes {
                true => assert_eq!(
                    answer.map(|passed| passed.listed_origin.is_some()),
                    Ok(listed),
                    "{origin}"
                ),
                false => assert_eq!(answer, Err(ErrorCode::OriginRefused), "{origin}"),
            }
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused_unless_listed() {
        for (site, origin, passes) in [
            ("same-origin", None, true),
            ("same-site", None, true),
            ("none", None, true),
            ("cross-site", None, false),
            ("Cross-Site", None, false),
            ("cross-site", Some("https://ui.lab"), true),
            ("cross-site", Some("http://localhost:8080"), false),
        ] {
            let mut headers = vec![("host", "localhost:8080"), ("sec-fetch-site", site)];
            headers.extend(origin.map(|origin| ("origin", origin)));
            assert_eq!(check(&headers, false).is_ok(), passes, "{site} {origin:?}");
        }
    }

    #[test]
    fn a_body_is_json_or_nothing() {
        for (kind, passes) in [
            (Some("application/json"), true),
            (Some("Application/JSON"), true),
            (Some("application/json; charset=utf-8"), false),
            (Some("text/plain"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (Some("multipart/form-data; boundary=x"), false),
            (Some("text/plain; application/json"), false),
            (None, false),
        ] {
            let mut headers = vec![("host", "localhost")];
            headers.extend(kind.map(|kind| ("content-type", kind)));
            let expected = if passes {
                Ok(())
            } else {
                Err(ErrorCode::UnsupportedMediaType)
            };
            assert_eq!(check(&headers, true).map(|_| ()), expected, "{kind:?}");
            assert!(
                check(&headers, false).is_ok(),
                "without a body {kind:?} does not matter"
            );
        }
    }
}
