//! Every route of the API, with what it needs. What is not in the table is denied; the middleware looks here and nowhere
//! else, and so does the OpenAPI document.

use super::openapi::Operation;
use super::{
    access, accounts, apps, builds, canary, certificates, drains, feed, headers, logs, openapi, owners, processes, registry,
    releases, routes, routing, run, seen, server, sessions,
};
use crate::core::Controller;
use axum::Router;
use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use flex_model::user::Scope;
use std::sync::LazyLock;

/// What runs inside an instance sees its config vars.
const SESSIONS: [&str; 3] = ["sessions::exec", "sessions::look_on", "sessions::port"];

/// What a caller must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Anybody: the handler checks what it is given, or there is nothing to protect.
    Nothing,
    /// Signed in.
    User,
    /// The app's owner or a collaborator (or an administrator).
    App,
    /// The app's owner (or an administrator).
    AppOwner,
    Admin,
    /// A router elsewhere, with a token of its own kind; no user is one.
    Router,
}

/// One route.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub needs: Needs,
    /// One line for the OpenAPI document.
    pub summary: &'static str,
    /// What the document says of its bodies.
    pub describe: fn() -> Operation,
    /// `apps::list`.
    pub handler_name: &'static str,
    handler: fn() -> MethodRouter<Controller>,
}

impl Route {
    /// Which scopes of tokens reach it, as Heroku divides them: `global` everything, `identity` the account, `read` and
    /// `write` apps without their config vars, `read-protected` and `write-protected` apps with them.
    pub fn is_reached_by(&self, scope: Scope) -> bool {
        let reads = self.method == Method::GET;
        let under = |prefixes: &[&str]| prefixes.iter().any(|p| self.path == *p || self.path.starts_with(&format!("{p}/")));
        let apps = self.path == "/users/~/apps";
        if reads && matches!(self.path, "/account" | "/users/~") {
            return true;
        }
        if !apps && under(&["/account", "/oauth", "/users", "/events", "/hosts", "/metrics", "/routers"]) {
            return scope == Scope::Global;
        }
        // What a run prints may be any config var.
        let shows_config = self.path.ends_with("/config-vars")
            || self.handler_name.ends_with("run::start")
            || SESSIONS.contains(&self.handler_name);
        let reads = reads || self.handler_name.ends_with("logs::create");
        match scope {
            Scope::Global | Scope::WriteProtected => true,
            Scope::Identity => false,
            Scope::Read => reads && !shows_config,
            Scope::ReadProtected => reads,
            Scope::Write => !shows_config,
        }
    }
}

macro_rules! routes {
    ($($method:ident $fun:ident $path:literal $needs:ident $handler:path, $summary:literal;)*) => {
        static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| vec![$(Route {
            method: Method::$method,
            path: $path,
            needs: Needs::$needs,
            summary: $summary,
            describe: || openapi::operation($handler),
            handler_name: stringify!($handler),
            handler: || $fun($handler),
        }),*]);
    };
}

/// All routes.
pub fn all() -> &'static [Route] {
    &ROUTES
}

routes! {
    GET get "/health" Nothing server::health, "Whether the server answers";
    GET get "/openapi.json" Nothing openapi::document, "This document";
    GET get "/errors/{id}" Nothing server::error_page, "What an error means, and what to do";
    GET get "/flex/server" Nothing server::info, "Version, checks, and how to reach git over SSH";
    POST post "/oauth/authorizations" Nothing accounts::authorize, "Make a token, with Basic e-mail and password or with a token";
    GET get "/oauth/authorizations" User accounts::authorizations, "List own tokens";
    GET get "/oauth/authorizations/{id}" User accounts::authorization, "One token";
    DELETE delete "/oauth/authorizations/{id}" User accounts::revoke, "Remove a token";
    GET get "/account" User accounts::account, "The signed-in user";
    GET get "/users/~" User accounts::account, "The signed-in user";
    GET get "/account/keys" User accounts::keys, "List own SSH keys";
    POST post "/account/keys" User accounts::add_key, "Register an SSH key";
    GET get "/account/keys/{key}" User accounts::key, "One SSH key";
    DELETE delete "/account/keys/{key}" User accounts::remove_key, "Remove an SSH key";
    GET get "/users" Admin accounts::users, "List users";
    POST post "/users" Admin accounts::add_user, "Add a user";
    GET get "/events" Admin server::events, "The history of changes";
    GET get "/hosts" Admin server::hosts, "Hosts and what they report";
    GET get "/stacks" User server::stacks, "Stacks";
    GET get "/regions" User server::regions, "Regions (there is one)";
    POST post "/sources" User builds::source, "A place to upload a source archive to";
    PUT put "/sources/{id}/{secret}" Nothing builds::upload, "Upload a source archive; the URL holds a secret";
    GET get "/apps" User apps::list, "Apps of the signed-in user";
    GET get "/users/~/apps" User apps::list, "Apps of the signed-in user";
    POST post "/apps" User apps::create, "Make an app";
    GET get "/apps/{app}" App apps::info, "One app";
    PATCH patch "/apps/{app}" App apps::update, "Rename an app, set maintenance mode";
    DELETE delete "/apps/{app}" AppOwner apps::destroy, "Destroy an app";
    GET get "/apps/{app}/config-vars" App releases::config, "Config vars";
    PATCH patch "/apps/{app}/config-vars" App releases::set_config, "Set and (with null) remove config vars";
    GET get "/apps/{app}/formation" App apps::formation, "Process types with quantity and size";
    PATCH patch "/apps/{app}/formation" App apps::scale, "Scale several process types";
    GET get "/apps/{app}/formation/{type}" App apps::formation_of, "Quantity and size of one process type";
    PATCH patch "/apps/{app}/formation/{type}" App apps::scale_one, "Scale one process type";
    GET get "/apps/{app}/dynos" App run::dynos, "Instances";
    POST post "/apps/{app}/dynos" App run::start, "Run a one-off command";
    DELETE delete "/apps/{app}/dynos" App run::restart_all, "Restart all instances";
    GET get "/apps/{app}/dynos/{dyno}" App run::dyno, "One instance";
    DELETE delete "/apps/{app}/dynos/{dyno}" App run::restart, "Restart an instance or a process type";
    DELETE delete "/apps/{app}/formations/{dyno}" App run::restart, "Restart a process type";
    POST post "/apps/{app}/dynos/{dyno}/actions/stop" App processes::stop, "Stop an instance or a process type until it is started";
    POST post "/apps/{app}/dynos/{dyno}/actions/start" App processes::start, "Start what was stopped";
    POST post "/apps/{app}/actions/stop" App processes::stop_all, "Stop all instances until they are started";
    POST post "/apps/{app}/actions/start" App processes::start_all, "Start all that was stopped";
    GET get "/apps/{app}/dynos/{dyno}/why" App run::why, "Why an instance is where it is, or is not running";
    POST post "/apps/{app}/dynos/{dyno}/exec" App sessions::exec, "Run a command inside an instance; attach to it over a WebSocket";
    POST post "/apps/{app}/dynos/{dyno}/attach" App sessions::look_on, "Look on at an instance over a WebSocket";
    GET get "/apps/{app}/dynos/{dyno}/ports/{port}" App sessions::port, "A connection to a port of an instance, over a WebSocket";
    GET get "/apps/{app}/runs" App sessions::runs, "One-off commands, running and over";
    GET get "/runs/{secret}" Nothing sessions::attach, "Attach to a run over a WebSocket; the URL holds a secret";
    GET get "/apps/{app}/releases" App releases::list, "Releases";
    POST post "/apps/{app}/releases" App releases::rollback, "Go back to an earlier release";
    GET get "/apps/{app}/canary" App canary::info, "The canary: a release with a share of the requests";
    PUT put "/apps/{app}/canary" App canary::set, "Begin a canary, or change its share";
    DELETE delete "/apps/{app}/canary" App canary::abort, "End the canary: what runs gets all requests";
    POST post "/apps/{app}/canary/actions/promote" App canary::promote, "Make the canary what runs";
    GET get "/apps/{app}/releases/{release}" App releases::info, "One release";
    GET get "/apps/{app}/releases/{release}/config-vars" App releases::config_of, "Config vars of a release";
    GET get "/apps/{app}/releases/{release}/output" App releases::output, "The output of a release's release phase";
    POST post "/apps/{app}/releases/{release}/actions/retry" App releases::retry, "Make a failed release anew";
    GET get "/release-output/{app_id}/{release}/{secret}" Nothing releases::open_output, "The same output; the URL holds a secret";
    GET get "/apps/{app}/checks" App processes::checks, "Health checks";
    PUT put "/apps/{app}/checks/{type}" App processes::set_check, "Set a process type's health check";
    DELETE delete "/apps/{app}/checks/{type}" App processes::unset_check, "Remove a health check: app.json's or the default applies again";
    GET get "/apps/{app}/history" App processes::history, "Past instances, and how they ended";
    GET get "/apps/{app}/rollout" App processes::rollout, "Whether what runs is what should run";
    GET get "/dyno-sizes" User processes::sizes, "Sizes that have a name";
    PUT put "/apps/{app}/lock" App owners::lock, "Refuse deploys";
    DELETE delete "/apps/{app}/lock" App owners::unlock, "Allow deploys again";
    POST post "/apps/{app}/transfer" AppOwner owners::transfer, "Give an app to another user";
    GET get "/apps/{app}/builds" App builds::list, "Builds";
    POST post "/apps/{app}/builds" App builds::create, "Build and release a source archive or an image";
    GET get "/apps/{app}/builds/{build}" App builds::info, "One build, with the time of each phase";
    DELETE delete "/apps/{app}/builds/{build}" App builds::cancel, "Cancel a build";
    PATCH patch "/apps/{app}/builds/{build}" App builds::cancel, "Cancel a build";
    GET get "/apps/{app}/builds/{build}/output" App builds::output, "A build's output, live while it runs";
    GET get "/build-output/{app_id}/{build}/{secret}" Nothing builds::open_output, "The same; the URL holds a secret";
    DELETE delete "/apps/{app}/build-cache" App builds::purge_cache, "Remove the build cache";
    GET get "/apps/{app}/slugs/{slug}" App builds::slug, "One slug";
    GET get "/apps/{app}/buildpack-installations" App apps::buildpacks, "Buildpacks";
    PUT put "/apps/{app}/buildpack-installations" App apps::set_buildpacks, "Set the buildpacks";
    GET get "/apps/{app}/collaborators" App apps::collaborators, "Collaborators";
    POST post "/apps/{app}/collaborators" AppOwner apps::add_collaborator, "Add a collaborator";
    DELETE delete "/apps/{app}/collaborators/{user}" AppOwner apps::remove_collaborator, "Remove a collaborator";
    GET get "/apps/{app}/domains" App apps::domains, "Domains";
    POST post "/apps/{app}/domains" App apps::add_domain, "Add a domain";
    GET get "/apps/{app}/domains/{domain}" App apps::domain, "One domain";
    DELETE delete "/apps/{app}/domains/{domain}" App apps::remove_domain, "Remove a domain";
    GET get "/apps/{app}/sni-endpoints" App certificates::list, "Certificates";
    POST post "/apps/{app}/sni-endpoints" App certificates::create, "Add a certificate";
    GET get "/apps/{app}/sni-endpoints/{endpoint}" App certificates::info, "One certificate";
    PATCH patch "/apps/{app}/sni-endpoints/{endpoint}" App certificates::update, "Replace a certificate";
    DELETE delete "/apps/{app}/sni-endpoints/{endpoint}" App certificates::remove, "Remove a certificate";
    POST post "/apps/{app}/acm" App certificates::enable_acm, "Have certificates for the app's domains made and renewed";
    PATCH patch "/apps/{app}/acm" App certificates::refresh_acm, "Try again for the domains that have no certificate";
    DELETE delete "/apps/{app}/acm" App certificates::disable_acm, "Make no more certificates, and remove those that were made";
    GET get "/router/table" Router feed::table, "For routers elsewhere: the routing table, line by line as it changes";
    GET get "/router/certificates" Router feed::certificates, "For routers elsewhere: the certificates, line by line as they change";
    POST post "/router/status" Router feed::status, "For routers elsewhere: what they route by, and requests under way";
    POST post "/router/signals" Router feed::signals, "For routers elsewhere: what they counted in the last second";
    POST post "/router/lines" Router feed::lines, "For routers elsewhere: access lines";
    GET get "/apps/{app}/routes" App routes::list, "Routes: those of the app's domains and those that were made";
    POST post "/apps/{app}/routes" App routes::add, "Route a host and path, a port or a name to a process type";
    GET get "/apps/{app}/routes/{route}" App routes::info, "One route";
    PATCH patch "/apps/{app}/routes/{route}" App routes::set, "Change where a route leads and how";
    DELETE delete "/apps/{app}/routes/{route}" App routes::remove, "Remove a route";
    GET get "/metrics" Admin seen::metrics, "The server's metrics, in Prometheus's text form";
    GET get "/routers" Admin seen::routers, "Routers: what they route by, and how far they are behind";
    GET get "/routes/trace" User seen::trace, "Which way a request to a host and path takes, and why";
    GET get "/apps/{app}/metrics" App seen::app_metrics, "An app's traffic of the last seconds, by process type";
    GET get "/apps/{app}/routing" App routing::info, "What holds for all HTTP routes of an app, and its own error pages";
    PATCH patch "/apps/{app}/routing" App routing::set, "Change what holds for all HTTP routes of an app, and its own error pages";
    POST post "/apps/{app}/log-sessions" App logs::create, "A URL to read the log from";
    GET get "/apps/{app}/log-drains" App drains::list, "Drains, with how each does";
    POST post "/apps/{app}/log-drains" App drains::add, "Send the log to a syslog or HTTPS receiver";
    GET get "/apps/{app}/log-drains/{drain}" App drains::info, "One drain";
    DELETE delete "/apps/{app}/log-drains/{drain}" App drains::remove, "Remove a drain";
    GET get "/apps/{app}/log-retention" App logs::retention, "How much of the log is kept";
    PATCH patch "/apps/{app}/log-retention" App logs::set_retention, "Set how much of the log is kept";
    GET get "/v2/" User registry::version, "OCI distribution: which version";
    GET get "/v2/{app}/tags/list" App registry::tags, "OCI distribution: the tags of an app's images";
    GET get "/v2/{app}/manifests/{reference}" App registry::manifest, "OCI distribution: a manifest";
    GET get "/v2/{app}/blobs/{digest}" App registry::blob, "OCI distribution: a blob";
    GET get "/logs/{secret}" Nothing logs::read, "Read a log session; the URL holds a secret";
    GET get "/apps/{app}/events" App apps::events, "The app's history of changes";
}

/// The route of a request; none: there is no such route.
pub fn find(method: &Method, path: &str) -> Option<&'static Route> {
    // HEAD is answered by GET's handler.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    all().iter().find(|r| r.method == *method && r.path == path)
}

pub fn router(controller: Controller) -> Router {
    let mut router = Router::new();
    for route in all() {
        router = router.route(route.path, (route.handler)());
    }
    router
        .route_layer(axum::middleware::from_fn_with_state(controller.clone(), access::check))
        .fallback(server::nothing_here)
        .layer(axum::middleware::from_fn_with_state(controller.clone(), headers::finish))
        .with_state(controller)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_reach_what_heroku_says_they_do() {
        use Scope::{Global, Identity, Read, ReadProtected, Write, WriteProtected};
        let who = |method: Method, path: &str| -> Vec<Scope> {
            let route = find(&method, path).unwrap_or_else(|| panic!("{method} {path}"));
            Scope::ALL.into_iter().filter(|s| route.is_reached_by(*s)).collect()
        };
        assert_eq!(who(Method::GET, "/account").len(), 6);
        for path in ["/account/keys", "/oauth/authorizations", "/users", "/events"] {
            assert_eq!(who(Method::GET, path), [Global], "{path}");
            assert!(find(&Method::POST, path).is_none() || who(Method::POST, path) == [Global], "{path}");
        }
        assert_eq!(who(Method::GET, "/users/~/apps"), [Global, Read, Write, ReadProtected, WriteProtected]);
        assert_eq!(who(Method::GET, "/apps/{app}/releases"), [Global, Read, Write, ReadProtected, WriteProtected]);
        assert_eq!(who(Method::POST, "/apps/{app}/log-sessions"), [Global, Read, Write, ReadProtected, WriteProtected]);
        assert_eq!(who(Method::POST, "/apps/{app}/builds"), [Global, Write, WriteProtected]);
        assert_eq!(who(Method::DELETE, "/apps/{app}"), [Global, Write, WriteProtected]);
        assert_eq!(who(Method::GET, "/apps/{app}/config-vars"), [Global, ReadProtected, WriteProtected]);
        assert_eq!(who(Method::GET, "/apps/{app}/releases/{release}/config-vars"), [Global, ReadProtected, WriteProtected]);
        assert_eq!(who(Method::PATCH, "/apps/{app}/config-vars"), [Global, WriteProtected]);
        assert_eq!(who(Method::POST, "/apps/{app}/dynos"), [Global, WriteProtected]);
        let identity: Vec<_> = all().iter().filter(|r| r.needs != Needs::Nothing && r.is_reached_by(Identity)).collect();
        assert!(identity.iter().all(|r| r.path == "/account" || r.path == "/users/~"));
    }
}
