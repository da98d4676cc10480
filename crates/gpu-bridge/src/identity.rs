//! Who is asking, as far as the broker can verify it, and what that allows.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method};
use gpu_api::{ErrorCode, Problem, paths};
use gpu_lease::Lease;
use nix::unistd::{Gid, Group, Uid, User};

use crate::secrets::Secrets;

/// What nobody verified.
pub(crate) const ANONYMOUS: &str = "anonymous";
/// Whoever shows the token. No user of the system can have a name with a colon.
const TOKEN_HOLDER: &str = "token:admin";

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// An address; who is behind it is not known.
    Tcp(SocketAddr),
    /// A process of this host, known to the kernel.
    Unix(Arc<UnixUser>),
}

impl Peer {
    /// Whether the kernel says that it is an admin.
    pub(crate) fn is_admin(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Unix(user) => user.admin,
        }
    }
}

/// The user at the other end of the Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixUser {
    /// The user's id.
    pub uid: u32,
    /// The user's name, or `uid:` and the id.
    pub name: String,
    /// Root, the broker's own user, or a member of the admin group.
    pub admin: bool,
}

/// Who is asking.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The verified user; `None` is anonymous.
    user: Option<String>,
    /// The verified user id.
    pub(crate) uid: Option<u32>,
    /// May use operator verbs.
    pub(crate) admin: bool,
    /// The token that was shown.
    token: Option<Arc<str>>,
}

/// What of a request and its connection decides who is asking and whether that is enough.
pub(crate) struct Approach<'a> {
    pub(crate) peer: Option<&'a Peer>,
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

impl UnixUser {
    /// Looks the user up. Blocks: the system's user database may be a directory service.
    pub fn look_up(uid: u32, gid: u32, admin_group: &str) -> Self {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let own = rustix::process::geteuid().as_raw();
        let group = || Group::from_name(admin_group).ok().flatten();
        let member = |group: Group| {
            let listed = user
                .as_ref()
                .is_some_and(|user| group.mem.contains(&user.name));
            listed || group.gid == Gid::from_raw(gid)
        };
        let admin = uid == 0 || uid == own || group().is_some_and(member);
        let name = user.map(|user| user.name).filter(|name| name != ANONYMOUS);
        Self {
            uid,
            name: name.unwrap_or_else(|| format!("uid:{uid}")),
            admin,
        }
    }
}

impl Caller {
    /// Finds out who is asking, and refuses whoever has to show a token and does not.
    pub(crate) fn identify(
        approach: &Approach<'_>,
        secrets: &Secrets,
        dev: bool,
    ) -> Result<Self, Problem> {
        let token = shown_token(approach.headers, secrets)?;
        let has_token = token.is_some();
        let by_token = || Self {
            user: Some(TOKEN_HOLDER.to_owned()),
            uid: None,
            admin: true,
            token: token.clone(),
        };
        match approach.peer {
            Some(Peer::Unix(user)) => Ok(Self {
                user: Some(user.name.clone()),
                uid: Some(user.uid),
                admin: user.admin || has_token,
                token,
            }),
            _ if has_token => Ok(by_token()),
            Some(Peer::Tcp(address)) => approach.without_token(is_loopback(address), dev),
            None => approach.without_token(false, dev),
        }
    }

    /// The name for audits and policies.
    pub(crate) fn name(&self) -> &str {
        self.user.as_deref().unwrap_or(ANONYMOUS)
    }

    /// Refuses everybody who may not use operator verbs.
    pub(crate) fn must_be_admin(&self) -> Result<(), Problem> {
        match self.admin {
            true => Ok(()),
            false => Err(Problem::new(
                ErrorCode::Forbidden,
                format!("`{}` may not use operator verbs", self.name()),
            )
            .with_hint("be root or in the group gpu-admin on the Unix socket, or show the token")),
        }
    }

    /// Refuses everybody who may not change `lease`: its secret, its verified user, or an admin may. A
    /// secret that is shown is checked whoever shows it.
    pub(crate) fn must_own(
        &self,
        lease: &Lease,
        secret: Option<&str>,
        secrets: &Secrets,
    ) -> Result<(), Problem> {
        let refused = |detail: &str| {
            Err(Problem::new(
                ErrorCode::Forbidden,
                format!("{detail} of lease `{}`", lease.id),
            ))
        };
        match secret {
            Some(shown) if secrets.is_of_lease(lease.id, shown) => Ok(()),
            Some(_) => refused("this is not the secret"),
            None if self.admin || self.user.as_ref() == Some(&lease.request.holder.user) => Ok(()),
            None => refused("this needs the secret").map_err(|problem: Problem| {
                problem.with_hint(
                    "send the `secret` of the answer to the acquire as the header `X-Lease-Secret`",
                )
            }),
        }
    }

    /// Whether the token that was shown, if any, is still the token.
    pub(crate) fn is_still_valid(&self, secrets: &Secrets) -> bool {
        self.token
            .as_ref()
            .is_none_or(|token| secrets.is_token(token))
    }
}

impl Approach<'_> {
    fn without_token(&self, loopback: bool, dev: bool) -> Result<Caller, Problem> {
        let operator = loopback && dev;
        let open = self.path == paths::HEALTHZ && self.is_read();
        if operator || open || (loopback && self.is_read()) {
            return Ok(Caller {
                user: None,
                uid: None,
                admin: operator,
                token: None,
            });
        }
        Err(unauthorized("this needs the token"))
    }

    /// Nothing is changed by it, although some carry a body.
    fn is_read(&self) -> bool {
        let questions = [
            paths::FENCES_CHECK,
            paths::POLICY_CHECK,
            paths::POLICY_EXPLAIN,
            paths::POLICY_PLAN,
        ];
        self.method.is_safe() || (self.method == Method::POST && questions.contains(&self.path))
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The token, if one is shown. A wrong one is refused also where none is needed.
fn shown_token(headers: &HeaderMap, secrets: &Secrets) -> Result<Option<Arc<str>>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else {
        return Ok(None);
    };
    let bearer = value
        .to_str()
        .ok()
        .and_then(bearer)
        .filter(|_| second.is_none());
    match bearer {
        Some(shown) if secrets.is_token(shown) => Ok(Some(shown.into())),
        Some(_) => Err(unauthorized("this is not the token")),
        None => Err(unauthorized(
            "the Authorization header is not `Bearer TOKEN`",
        )),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(ErrorCode::Unauthorized, detail).with_hint(
        "`gpu-manager token show` prints it; send it as `Authorization: Bearer TOKEN`, or use the Unix socket",
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(address.parse().expect("an address"))
    }

    fn identify(
        peer: Option<&Peer>,
        method: &Method,
        path: &str,
        token: Option<&str>,
        secrets: &Secrets,
        dev: bool,
    ) -> Result<(String, bool), ErrorCode> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(
                AUTHORIZATION,
                HeaderValue::from_str(token).expect("a header value"),
            );
        }
        let approach = Approach {
            peer,
            method,
            path,
            headers: &headers,
        };
        Caller::identify(&approach, secrets, dev)
            .map(|caller| (caller.name().to_owned(), caller.admin))
            .map_err(|problem| problem.code)
    }

    #[test]
    fn who_may_do_what_without_and_with_a_token() {
        let secrets = Secrets::ephemeral();
        let good = format!("Bearer {}", secrets.token().expect("a token"));
        let (near, far) = (peer("127.0.0.1:5000"), peer("192.168.1.9:5000"));
        let mapped = peer("[::ffff:127.0.0.1]:5000");
        let user = |admin| {
            Peer::Unix(Arc::new(UnixUser {
                uid: 1000,
                name: "ann".into(),
                admin,
            }))
        };
        let anonymous = |admin| Ok((ANONYMOUS.to_owned(), admin));
        let holder = Ok((TOKEN_HOLDER.to_owned(), true));
        let refused = Err(ErrorCode::Unauthorized);
        let (get, post) = (Method::GET, Method::POST);
        let leases = paths::LEASES;
        for (name, who, method, path, token, dev, expected) in [
            (
                "dev loopback reads",
                Some(&near),
                &get,
                leases,
                None,
                true,
                anonymous(true),
            ),
            (
                "dev loopback writes",
                Some(&near),
                &post,
                leases,
                None,
                true,
                anonymous(true),
            ),
            (
                "dev, IPv4 in IPv6",
                Some(&mapped),
                &post,
                leases,
                None,
                true,
                anonymous(true),
            ),
            (
                "dev, wrong token",
                Some(&near),
                &get,
                leases,
                Some("Bearer no"),
                true,
                refused.clone(),
            ),
            (
                "dev, from afar",
                Some(&far),
                &get,
                leases,
                None,
                true,
                refused.clone(),
            ),
            (
                "loopback reads",
                Some(&near),
                &get,
                leases,
                None,
                false,
                anonymous(false),
            ),
            (
                "loopback asks",
                Some(&near),
                &post,
                paths::FENCES_CHECK,
                None,
                false,
                anonymous(false),
            ),
            (
                "loopback writes",
                Some(&near),
                &post,
                leases,
                None,
                false,
                refused.clone(),
            ),
            (
                "loopback deletes",
                Some(&near),
                &Method::DELETE,
                "/v1/leases/x",
                None,
                false,
                refused.clone(),
            ),
            (
                "loopback, odd method",
                Some(&near),
                &Method::CONNECT,
                leases,
                None,
                false,
                refused.clone(),
            ),
            (
                "loopback, token",
                Some(&near),
                &post,
                leases,
                Some(good.as_str()),
                false,
                holder.clone(),
            ),
            (
                "afar reads",
                Some(&far),
                &get,
                leases,
                None,
                false,
                refused.clone(),
            ),
            (
                "afar, health",
                Some(&far),
                &get,
                paths::HEALTHZ,
                None,
                false,
                anonymous(false),
            ),
            (
                "afar posts health",
                Some(&far),
                &post,
                paths::HEALTHZ,
                None,
                false,
                refused.clone(),
            ),
            (
                "afar, metrics",
                Some(&far),
                &get,
                paths::METRICS,
                None,
                false,
                refused.clone(),
            ),
            (
                "afar, token",
                Some(&far),
                &post,
                leases,
                Some(good.as_str()),
                false,
                holder,
            ),
            (
                "afar, wrong scheme",
                Some(&far),
                &get,
                leases,
                Some("Basic abc"),
                false,
                refused.clone(),
            ),
            (
                "nobody knows",
                None,
                &get,
                leases,
                None,
                true,
                refused.clone(),
            ),
        ] {
            assert_eq!(
                identify(who, method, path, token, &secrets, dev),
                expected,
                "{name}"
            );
        }
        let ann = |admin| Ok(("ann".to_owned(), admin));
        for (name, admin, token, expected) in [
            ("socket", false, None, ann(false)),
            ("socket, admin", true, None, ann(true)),
            ("socket, token", false, Some(good.as_str()), ann(true)),
            ("socket, wrong token", true, Some("Bearer no"), refused),
        ] {
            let answer = identify(Some(&user(admin)), &post, leases, token, &secrets, false);
            assert_eq!(answer, expected, "{name}");
        }
    }

    #[test]
    fn root_is_an_admin_and_nobody_is_not() {
        assert!(UnixUser::look_up(0, 0, "gpu-admin").admin);
        let stranger = UnixUser::look_up(54_321, 54_321, "no-such-group");
        assert_eq!(
            stranger,
            UnixUser {
                uid: 54_321,
                name: "uid:54321".into(),
                admin: false
            }
        );
    }
}
