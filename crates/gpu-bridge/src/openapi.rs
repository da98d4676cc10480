//! The API as an OpenAPI 3.1 document, made from the wire types and one table of operations.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use gpu_api::{
    AcquireRequest, CordonRequest, Device, DeviceDrainResult, DeviceList, DrainRequest,
    EmergencyRequest, EmergencyResult, ErrorCode, Event, ExplainRequest, Explanation, FenceAnswer,
    FenceCheck, Health, History, HistoryQuery, IDEMPOTENCY_KEY_HEADER, LEASE_SECRET_HEADER, Lease,
    LeaseList, LeaseListQuery, LeaseQuery, OverridesRequest, Policy, PolicyCheck,
    PolicyCheckRequest, PolicyPlan, PolicyPlanRequest, PolicyPut, PolicyRollbackRequest, Problem,
    Queue, ReloadOutcome, ReloadQuery, ReloadRequest, ReloadResult, ReloadState, ReloadSwitch,
    Status, UsageQuery, UsageReport, paths,
};
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApiBuilder, PathsBuilder, Ref, RefOr,
    Required, ResponseBuilder, ResponsesBuilder,
};
use utoipa::{IntoParams, ToSchema};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
const TOKEN_SCHEME: &str = "token";

/// The document as JSON, the same text each time.
pub fn openapi_json() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(document);
    &TEXT
}

/// One method of one path.
struct Operation {
    method: HttpMethod,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<(RefOr<Schema>, Required)>,
    answers: Vec<Answer>,
    /// What is answered whatever becomes of it, with the status of its outcome.
    result: Option<RefOr<Schema>>,
    problems: Vec<ErrorCode>,
}

/// A good answer.
struct Answer {
    status: u16,
    words: &'static str,
    kind: &'static str,
    schema: RefOr<Schema>,
}

/// The schemas that the operations refer to, by name.
#[derive(Default)]
struct Schemas(BTreeMap<String, RefOr<Schema>>);

impl Schemas {
    /// A reference to `T`, which is described among the components.
    fn of<T: ToSchema>(&mut self) -> RefOr<Schema> {
        let mut found = Vec::new();
        T::schemas(&mut found);
        found.push((T::name().into_owned(), T::schema()));
        self.0.extend(found);
        Ref::from_schema_name(T::name()).into()
    }
}

impl Operation {
    fn new(
        method: HttpMethod,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
    ) -> Self {
        let parameters = path
            .contains("{id}")
            .then(|| text_parameter("id", ParameterIn::Path, "The id."));
        Self {
            method,
            path,
            id,
            summary,
            parameters: parameters.into_iter().collect(),
            body: None,
            answers: Vec::new(),
            result: None,
            problems: Vec::new(),
        }
    }

    fn get(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(HttpMethod::Get, path, id, summary)
    }

    fn post(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(HttpMethod::Post, path, id, summary).or(&[ErrorCode::Unauthorized])
    }

    fn body(mut self, schema: RefOr<Schema>) -> Self {
        self.body = Some((schema, Required::True));
        self.or(&BODY_PROBLEMS)
    }

    fn optional_body(mut self, schema: RefOr<Schema>) -> Self {
        self.body = Some((schema, Required::False));
        self.or(&BODY_PROBLEMS)
    }

    fn with(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    fn query<Q: IntoParams>(mut self) -> Self {
        self.parameters
            .extend(Q::into_params(|| Some(ParameterIn::Query)));
        self.or(&[ErrorCode::BadRequest])
    }

    fn answers(mut self, status: u16, words: &'static str, schema: RefOr<Schema>) -> Self {
        self.answers.push(Answer {
            status,
            words,
            kind: JSON,
            schema,
        });
        self
    }

    /// Loads a policy.
    fn loads(mut self, result: RefOr<Schema>) -> Self {
        self.result = Some(result);
        let live = text_parameter(
            "if-match",
            ParameterIn::Header,
            "The hash of the policy that must be in force, in quotes; otherwise nothing changes.",
        );
        self.with(live)
            .query::<ReloadQuery>()
            .or(&ADMIN_PROBLEMS)
            .or(&[ErrorCode::TooManyReloads])
    }

    fn text(mut self, words: &'static str, kind: &'static str) -> Self {
        self.answers.push(Answer {
            status: 200,
            words,
            kind,
            schema: ObjectBuilder::new().schema_type(Type::String).into(),
        });
        self
    }

    fn or(mut self, problems: &[ErrorCode]) -> Self {
        self.problems.extend(problems);
        self
    }

    fn described(self, problem: &RefOr<Schema>) -> PathItem {
        let mut responses = ResponsesBuilder::new();
        for answer in self.answers {
            let content = ContentBuilder::new().schema(Some(answer.schema)).build();
            let described = ResponseBuilder::new()
                .description(answer.words)
                .content(answer.kind, content);
            responses = responses.response(answer.status.to_string(), described);
        }
        let result = self.result.as_ref();
        let results = result.map_or_else(BTreeMap::new, |_| outcomes_by_status());
        let mut problems = by_status(&self.problems);
        for (status, outcomes) in results {
            // One status can be a result or a problem; the content type says which.
            let mut described = ResponseBuilder::new();
            let mut words = format!("The result; `outcome` is {outcomes}.");
            let content = ContentBuilder::new().schema(result.cloned()).build();
            described = described.content(JSON, content);
            if let Some(codes) = problems.remove(&status) {
                words = format!("{words} Or a problem: {codes}");
                let content = ContentBuilder::new().schema(Some(problem.clone())).build();
                described = described.content(PROBLEM, content);
            }
            responses = responses.response(status.to_string(), described.description(words));
        }
        for (status, words) in problems {
            let content = ContentBuilder::new().schema(Some(problem.clone())).build();
            let described = ResponseBuilder::new()
                .description(words)
                .content(PROBLEM, content);
            responses = responses.response(status.to_string(), described);
        }
        let body = self.body.map(|(schema, required)| {
            let content = ContentBuilder::new().schema(Some(schema)).build();
            RequestBodyBuilder::new()
                .content(JSON, content)
                .required(Some(required))
                .build()
        });
        let operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .summary(Some(self.summary))
            .parameters(Some(self.parameters))
            .request_body(body)
            .responses(responses.build());
        PathItem::new(self.method, operation)
    }
}

/// What can be wrong with any body.
const BODY_PROBLEMS: [ErrorCode; 5] = [
    ErrorCode::BadJson,
    ErrorCode::BodyTooLarge,
    ErrorCode::InvalidRequest,
    ErrorCode::RequestTimeout,
    ErrorCode::UnsupportedMediaType,
];
/// What an operator verb can be told.
const ADMIN_PROBLEMS: [ErrorCode; 3] = [
    ErrorCode::Forbidden,
    ErrorCode::Overloaded,
    ErrorCode::ShuttingDown,
];
/// What a holder can be told.
const HOLDER_PROBLEMS: [ErrorCode; 5] = [
    ErrorCode::Ended,
    ErrorCode::Forbidden,
    ErrorCode::NotFound,
    ErrorCode::Overloaded,
    ErrorCode::ShuttingDown,
];
const ACQUIRE_PROBLEMS: [ErrorCode; 11] = [
    ErrorCode::BadRequest,
    ErrorCode::Denied,
    ErrorCode::DoesNotFit,
    ErrorCode::Ended,
    ErrorCode::IdempotencyMismatch,
    ErrorCode::NeverFits,
    ErrorCode::QueueFull,
    ErrorCode::Recovering,
    ErrorCode::SafeStart,
    ErrorCode::ShuttingDown,
    ErrorCode::WaitOver,
];

fn document() -> String {
    let mut schemas = Schemas::default();
    let problem = schemas.of::<Problem>();
    let mut paths = PathsBuilder::new();
    for operation in operations(&mut schemas) {
        let path = operation.path;
        paths = paths.path(path, operation.described(&problem));
    }
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Needed over TCP for everything that changes something; `gpu-manager token show` prints it."));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas.0)
        .security_scheme(TOKEN_SCHEME, SecurityScheme::Http(token.build()));
    let nothing: [&str; 0] = [];
    let document = OpenApiBuilder::new()
        .info(info())
        .paths(paths)
        .components(Some(components.build()))
        .security(Some([
            SecurityRequirement::default(),
            SecurityRequirement::new(TOKEN_SCHEME, nothing),
        ]))
        .build();
    let mut text = document
        .to_pretty_json()
        .expect("the document is plain data with text as keys");
    text.push('\n');
    text
}

fn info() -> utoipa::openapi::Info {
    let license = LicenseBuilder::new()
        .name("Apache-2.0 OR MIT")
        .identifier(Some("Apache-2.0 OR MIT"));
    InfoBuilder::new()
        .title("gpu-manager")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Leases of the GPUs of one host. Errors are RFC 9457 problems with a `code`; bytes are integers in \
             answers, and integers or text such as \"12GiB\" in requests; times are RFC 3339 UTC.",
        ))
        .license(Some(license.build()))
        .build()
}

fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut operations = lease_operations(schemas);
    operations.extend(operator_operations(schemas));
    operations.extend(device_operations(schemas));
    operations.extend(policy_operations(schemas));
    operations.extend(status_operations(schemas));
    operations
}

fn lease_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let lease = schemas.of::<Lease>();
    let secret = || {
        text_parameter(
            LEASE_SECRET_HEADER,
            ParameterIn::Header,
            "The lease's secret; its verified user and admins need none.",
        )
    };
    let key = text_parameter(
        IDEMPOTENCY_KEY_HEADER,
        ParameterIn::Header,
        "The same key answers the same lease; 1 to 128 visible ASCII characters.",
    );
    let held = |path, id, summary, words| {
        Operation::post(path, id, summary)
            .with(secret())
            .answers(200, words, lease.clone())
            .or(&HOLDER_PROBLEMS)
    };
    vec![
        Operation::post(paths::LEASES, "acquire", "Ask for a lease")
            .with(key)
            .body(schemas.of::<AcquireRequest>())
            .answers(201, "Granted; with the lease's secret.", lease.clone())
            .answers(202, "Queued; with the lease's secret.", lease.clone())
            .answers(
                200,
                "A replay of a request whose lease has ended.",
                lease.clone(),
            )
            .or(&ACQUIRE_PROBLEMS)
            .or(&[ErrorCode::Forbidden, ErrorCode::Overloaded]),
        Operation::get(paths::LEASES, "leases", "The leases, a page at a time")
            .query::<LeaseListQuery>()
            .answers(200, "A page.", schemas.of::<LeaseList>()),
        Operation::get(
            paths::LEASE,
            "lease",
            "One lease, now or after its next change",
        )
        .query::<LeaseQuery>()
        .answers(200, "The lease.", lease.clone())
        .or(&[ErrorCode::NotFound, ErrorCode::Overloaded]),
        Operation {
            method: HttpMethod::Delete,
            ..held(
                paths::LEASE,
                "release",
                "Give a lease back, or leave the queue",
                "The lease, over.",
            )
        },
        held(
            paths::LEASE_RELEASE,
            "release_by_post",
            "Give a lease back, or leave the queue",
            "The lease, over.",
        ),
        held(
            paths::LEASE_RENEW,
            "renew",
            "Heartbeat",
            "The lease; `draining` asks to go.",
        ),
        held(
            paths::LEASE_READY,
            "ready",
            "End of the load phase",
            "The lease.",
        )
        .or(&[ErrorCode::WrongState]),
        Operation::post(
            paths::FENCES_CHECK,
            "check_fence",
            "Whether a fence is still current",
        )
        .body(schemas.of::<FenceCheck>())
        .answers(200, "The answer.", schemas.of::<FenceAnswer>())
        .or(&[ErrorCode::NotFound]),
        Operation::get(paths::QUEUE, "queue", "Who waits, and why").answers(
            200,
            "The waiters in order of service.",
            schemas.of::<Queue>(),
        ),
    ]
}

fn operator_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let lease = schemas.of::<Lease>();
    let on_lease = |path, id, summary, body: RefOr<Schema>| {
        Operation::post(path, id, summary)
            .optional_body(body)
            .answers(200, "The lease.", lease.clone())
            .or(&HOLDER_PROBLEMS)
    };
    let notice = schemas.of::<DrainRequest>();
    vec![
        on_lease(
            paths::LEASE_DRAIN,
            "drain_lease",
            "Admin: ask a holder to go by a deadline",
            notice.clone(),
        )
        .or(&[ErrorCode::WrongState]),
        on_lease(paths::LEASE_REVOKE, "revoke", "Admin: end a lease", notice),
        Operation::post(
            paths::EMERGENCY_RELEASE,
            "emergency_release",
            "Admin: end what is stuck, or everything",
        )
        .body(schemas.of::<EmergencyRequest>())
        .answers(
            200,
            "What was ended, and what is really free.",
            schemas.of::<EmergencyResult>(),
        )
        .or(&[ErrorCode::NotFound])
        .or(&ADMIN_PROBLEMS),
    ]
}

fn device_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let device = schemas.of::<Device>();
    let body = schemas.of::<CordonRequest>();
    let on_device = |path, id, summary| {
        Operation::post(path, id, summary)
            .optional_body(body.clone())
            .answers(200, "The device.", device.clone())
            .or(&[ErrorCode::NotFound])
            .or(&ADMIN_PROBLEMS)
    };
    vec![
        Operation::get(
            paths::DEVICES,
            "devices",
            "The devices, with what is held and read on them",
        )
        .answers(200, "The devices.", schemas.of::<DeviceList>()),
        on_device(
            paths::DEVICE_CORDON,
            "cordon",
            "Admin: no new grants on a device",
        ),
        on_device(
            paths::DEVICE_UNCORDON,
            "uncordon",
            "Admin: grants on a device again",
        ),
        on_device(
            paths::DEVICE_CLEAR_QUARANTINE,
            "clear_quarantine",
            "Admin: believe that quarantined memory is free",
        ),
        Operation::post(
            paths::DEVICE_DRAIN,
            "drain_device",
            "Admin: cordon a device and ask its holders to go",
        )
        .optional_body(schemas.of::<DrainRequest>())
        .answers(
            200,
            "The device and its leases.",
            schemas.of::<DeviceDrainResult>(),
        )
        .or(&[ErrorCode::NotFound])
        .or(&ADMIN_PROBLEMS),
    ]
}

fn policy_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let state = schemas.of::<ReloadState>();
    let mut operations = vec![
        Operation::post(
            paths::HOT_RELOAD,
            "reload",
            "Admin: reload the policy now, and wait for the result",
        )
        .optional_body(schemas.of::<ReloadRequest>())
        .loads(schemas.of::<ReloadResult>()),
        Operation::get(
            paths::HOT_RELOAD,
            "reload_state",
            "How the policy watch stands, and the last reloads",
        )
        .answers(200, "The policy watch.", state.clone()),
        Operation {
            method: HttpMethod::Put,
            ..Operation::post(
                paths::HOT_RELOAD,
                "switch_reload",
                "Admin: switch the policy watch",
            )
            .body(schemas.of::<ReloadSwitch>())
            .answers(200, "The policy watch.", state)
            .or(&ADMIN_PROBLEMS)
            .or(&[ErrorCode::TooManyReloads])
        },
        Operation::get(
            paths::POLICY,
            "policy",
            "The policy in force; its hash is the `ETag`",
        )
        .answers(200, "The policy.", schemas.of::<Policy>()),
    ];
    operations.extend(policy_questions(schemas));
    operations.extend(policy_changes(schemas));
    operations
}

fn policy_questions(schemas: &mut Schemas) -> Vec<Operation> {
    vec![
        Operation::post(
            paths::POLICY_CHECK,
            "check_policy",
            "Compile texts without loading them",
        )
        .body(schemas.of::<PolicyCheckRequest>())
        .answers(
            200,
            "What they would change, or all that is wrong with them.",
            schemas.of::<PolicyCheck>(),
        )
        .or(&[ErrorCode::Overloaded]),
        Operation::post(
            paths::POLICY_PLAN,
            "plan_policy",
            "What texts would mean for what is held and what waits, without loading them",
        )
        .optional_body(schemas.of::<PolicyPlanRequest>())
        .answers(
            200,
            "The plan, or all that is wrong with them.",
            schemas.of::<PolicyPlan>(),
        )
        .or(&[ErrorCode::Overloaded]),
        Operation::post(
            paths::POLICY_EXPLAIN,
            "explain_policy",
            "What would become of a request, now or at another time of the day",
        )
        .body(schemas.of::<ExplainRequest>())
        .answers(
            200,
            "Which rules apply, where it would go, or why it would not.",
            schemas.of::<Explanation>(),
        )
        .or(&ADMIN_PROBLEMS),
    ]
}

fn policy_changes(schemas: &mut Schemas) -> Vec<Operation> {
    let result = schemas.of::<ReloadResult>();
    vec![
        Operation {
            method: HttpMethod::Put,
            ..Operation::post(
                paths::POLICY,
                "put_policy",
                "Admin: write the whole set of policy files and load it",
            )
            .body(schemas.of::<PolicyPut>())
            .loads(result.clone())
            .or(&[ErrorCode::PolicyReadOnly])
        },
        Operation::post(
            paths::POLICY_ROLLBACK,
            "rollback_policy",
            "Admin: back to an earlier policy",
        )
        .optional_body(schemas.of::<PolicyRollbackRequest>())
        .loads(result.clone())
        .or(&[ErrorCode::NotFound, ErrorCode::WrongState]),
        Operation {
            method: HttpMethod::Put,
            ..Operation::post(
                paths::POLICY_OVERRIDES,
                "set_overrides",
                "Admin: replace the settings above the policy files, for a while",
            )
            .body(schemas.of::<OverridesRequest>())
            .loads(result)
        },
    ]
}

fn status_operations(schemas: &mut Schemas) -> Vec<Operation> {
    let health = schemas.of::<Health>();
    // The data of one server-sent event.
    schemas.of::<Event>();
    let last = text_parameter(
        "last-event-id",
        ParameterIn::Header,
        "The id of the last event that was seen: what follows is told first.",
    );
    let ready = |path, id| {
        Operation::get(path, id, "Whether the broker grants")
            .answers(200, "It does.", health.clone())
            .or(&[
                ErrorCode::Recovering,
                ErrorCode::SafeStart,
                ErrorCode::ShuttingDown,
            ])
    };
    vec![
        Operation::get(
            paths::EVENTS,
            "events",
            "What happens, as server-sent events",
        )
        .with(last)
        .text(
            "Events; the data of each is an `Event`. An event `reset` says that history was lost.",
            "text/event-stream",
        )
        .or(&[ErrorCode::Overloaded]),
        Operation::get(paths::HISTORY, "history", "What happened, a page at a time")
            .query::<HistoryQuery>()
            .answers(200, "A page, oldest first.", schemas.of::<History>())
            .or(&[ErrorCode::Overloaded]),
        Operation::get(paths::USAGE, "usage", "Who held what for how long")
            .query::<UsageQuery>()
            .answers(200, "What was held, added up.", schemas.of::<UsageReport>())
            .or(&[ErrorCode::Overloaded]),
        Operation::get(paths::STATUS, "status", "The broker at a glance").answers(
            200,
            "The broker.",
            schemas.of::<Status>(),
        ),
        Operation::get(paths::HEALTHZ, "healthz", "Whether the process answers").answers(
            200,
            "It does.",
            health.clone(),
        ),
        ready(paths::READYZ, "readyz"),
        ready(paths::HEALTH, "health"),
        Operation::get(paths::METRICS, "metrics", "Numbers for Prometheus")
            .text("The metrics.", "application/openmetrics-text"),
        Operation::get(paths::OPENAPI, "openapi", "This document").text("The document.", JSON),
    ]
}

fn text_parameter(name: &str, place: ParameterIn, words: &str) -> Parameter {
    let required = match place {
        ParameterIn::Path => Required::True,
        _ => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(words))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

/// The codes of each status, as one line.
fn by_status(codes: &[ErrorCode]) -> BTreeMap<u16, String> {
    let everywhere = [
        ErrorCode::HostRefused,
        ErrorCode::OriginRefused,
        ErrorCode::Unauthorized,
    ];
    let mut codes: Vec<ErrorCode> = codes.iter().copied().chain(everywhere).collect();
    codes.sort_unstable();
    codes.dedup();
    let mut lines: BTreeMap<u16, String> = BTreeMap::new();
    for code in codes {
        let line = lines.entry(code.status()).or_default();
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(&format!("`{code}`"));
    }
    lines
}

/// The outcomes of a reload that each status stands for, as one line.
fn outcomes_by_status() -> BTreeMap<u16, String> {
    let mut lines: BTreeMap<u16, String> = BTreeMap::new();
    for outcome in ReloadOutcome::ALL {
        let line = lines.entry(outcome.status()).or_default();
        let or = if line.is_empty() { "" } else { " or " };
        line.push_str(&format!("{or}`{}`", outcome.as_str()));
    }
    lines
}
