//! Routes of an app: ways into it by host and path, by port, or by the name that a TLS client asks for.

use crate::AppRef;
use crate::schema::{HostNameText, Id, Time};
use flex_model::http_policy::{PageKind, Places};
use flex_model::{DomainName, HttpPolicy, PathPrefix, Policy, RouteId, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What a route is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// Requests by host and path.
    Http,
    /// Connections to a port.
    Tcp,
    /// TLS connections to a port by the name that they ask for, passed through.
    Sni,
    /// Datagrams to a port.
    Udp,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// None: a domain's own, which nobody made.
    #[schema(value_type = Option<Id>)]
    pub id: Option<RouteId>,
    pub app: AppRef,
    /// As people write it: `www.example.com/api`, `tcp:5432`.
    pub name: String,
    pub kind: RouteKind,
    #[schema(value_type = Option<HostNameText>)]
    pub host: Option<DomainName>,
    /// The beginning of the paths that it is for.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathPrefix>,
    pub port: Option<u16>,
    /// The router ends TLS.
    #[serde(default)]
    pub tls: bool,
    /// `[{"process": "web", "weight": 1}]`; a request goes to one of them, by weight.
    #[schema(value_type = Vec<Object>)]
    pub targets: Vec<Target>,
    /// What was set for it. Passwords are hidden.
    #[schema(value_type = Object)]
    pub policy: Policy,
    /// What holds for its HTTP requests: what was set for it, for the app, and by `app.json`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub http: HttpPolicy,
    /// What routers could not do of it.
    pub problems: Vec<String>,
    pub created_at: Time,
    pub updated_at: Time,
}

/// A route to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddRoute {
    pub kind: RouteKind,
    #[schema(value_type = Option<HostNameText>)]
    pub host: Option<DomainName>,
    #[schema(value_type = Option<String>)]
    pub path: Option<PathPrefix>,
    /// Left out for `tcp` and `udp`: one of the range is allotted.
    pub port: Option<u16>,
    /// For `tcp`: the router ends TLS, with the certificate of the name that a client asks for.
    #[serde(default)]
    pub tls: bool,
    /// Left out: `web`.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub targets: Vec<Target>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub policy: serde_json::Map<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passwords_of: Option<PasswordsOf>,
}

/// Where passwords that are given as `[hidden]` are taken from: each becomes what the user of that name has there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PasswordsOf {
    /// Name or id of another app that the caller may change.
    pub app: String,
    /// One of its routes, by name or id; left out: what holds for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

/// What to change of a route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateRoute {
    #[schema(value_type = Option<Vec<Object>>)]
    pub targets: Option<Vec<Target>>,
    /// Fields to change, those of `http` one by one; null brings a default back.
    #[schema(value_type = Option<Object>)]
    pub policy: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What holds for all HTTP routes of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Routing {
    pub app: AppRef,
    /// What was set. A route's own settings win over it. Passwords are hidden.
    #[schema(value_type = Object)]
    pub http: HttpPolicy,
    /// What `app.json` says, by place; what was set wins over it.
    #[schema(value_type = Object)]
    pub app_json: Places,
    /// The app's own pages.
    pub pages: Vec<ErrorPage>,
}

/// A page of an app's own for answers that routers make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorPage {
    /// `maintenance`, `error`, or a code such as `H12`.
    #[schema(value_type = String)]
    pub name: PageKind,
    pub bytes: u64,
    /// HTML.
    #[serde(default)]
    pub text: String,
}

/// What to change of what holds for all HTTP routes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateRouting {
    /// Fields to change; null brings a default back.
    #[schema(value_type = Option<Object>)]
    pub http: Option<serde_json::Map<String, serde_json::Value>>,
    /// HTML by name; null removes a page.
    #[schema(value_type = Option<Object>)]
    pub pages: Option<BTreeMap<PageKind, Option<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passwords_of: Option<PasswordsOf>,
}
