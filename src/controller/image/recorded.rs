//! An environment that a site's deployment server has recorded, asked for with the account that the site's
//! configuration gives the image's namespace, or that of a Secret there. Only looks.
//!
//! Where that configuration says where the server's files are on the web, the description that is kept has the address
//! there, and says above what it was.

use crate::{
    api::image::{EnvironmentSource, RecordedEnvironment},
    config::{Config, KadeployConfig},
    controller::account,
    driver::{
        cluster::ClusterView,
        kadeploy::{Deployers, Environment, EnvironmentName, KadeployError},
        site::Credentials,
    },
    image::{Trouble, TroubleKind},
    yaml,
};

/// Longest description that is kept.
const LONGEST: usize = 65536;

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It is this one.
    Found(RecordedEnvironment),
    /// The server does not answer; what it has is not known.
    Silent(String),
    /// It cannot be had.
    Wrong(Trouble),
}

/// Asks the server of the site that `source` names.
pub async fn look_up(
    source: &EnvironmentSource,
    namespace: &str,
    config: &Config,
    view: &dyn ClusterView,
    deployers: &dyn Deployers,
) -> Looked {
    match ask(source, namespace, config, view, deployers).await {
        Ok(environment) => Looked::Found(environment),
        Err(looked) => looked,
    }
}

async fn ask(
    source: &EnvironmentSource,
    namespace: &str,
    config: &Config,
    view: &dyn ClusterView,
    deployers: &dyn Deployers,
) -> Result<RecordedEnvironment, Looked> {
    let wrong = |kind, message: &str| Looked::Wrong(Trouble::passing(kind, message));
    let name = EnvironmentName {
        name: source.name.clone().unwrap_or_default(),
        user: source.user.clone(),
        version: source.version.map(u64::from),
    };
    let site = source.site.as_deref().unwrap_or_default();
    let Some(settings) = config.sites.get(site) else {
        let known: Vec<&str> = config.sites.keys().map(String::as_str).collect();
        let known = known.join(", ");
        let message = format!("site {site:?} is not configured; spec.source.environment.site may be: {known}");
        return Err(Looked::Wrong(Trouble::refused(TroubleKind::Site, message)));
    };
    let Some(kadeploy) = &settings.kadeploy else {
        let message = format!(
            "site {site} has no deployment server in the operator's configuration (sites.{site}.kadeploy): give the \
             description of {name} instead of its name"
        );
        return Err(Looked::Wrong(Trouble::refused(TroubleKind::Site, message)));
    };
    let account = match &source.credentials {
        Some(secret) => own(&secret.name, namespace, view).await?,
        None => account::configured(settings, namespace).ok_or_else(|| {
            let message = format!(
                "site {site} gives namespace {namespace} no account (sites.{site}.users in the operator's configuration): \
                 name a Secret with one in spec.source.environment.credentials, or give the description of {name} instead \
                 of its name"
            );
            wrong(TroubleKind::LoginMissing, &message)
        })?,
    };
    let failed = |error: KadeployError| {
        let message = format!("environment {name} at site {site}: {error}");
        match error {
            KadeployError::Unreachable(_) => Looked::Silent(message),
            KadeployError::NoEnvironment(_) => wrong(
                TroubleKind::Environment,
                &format!("{message}: correct name, user and version of spec.source.environment, or record it there"),
            ),
            KadeployError::Credentials(_) | KadeployError::RightsMissing(_) => {
                wrong(TroubleKind::LoginRefused, &message)
            }
            KadeployError::Configuration(_) => wrong(TroubleKind::Site, &message),
            KadeployError::Refused(_) | KadeployError::Bug(_) => {
                Looked::Wrong(Trouble::refused(TroubleKind::Unusable, message))
            }
        }
    };
    let server = deployers.account(site, &account).map_err(failed)?;
    let mut found = server.describe(&name).await.map_err(failed)?;
    let mut head = String::new();
    // a file that the spec names itself comes from there
    if source.http.is_none() && source.claim.is_none() {
        head = put_on_web(&mut found, site, kadeploy).map_err(|why| {
            let message = format!("environment {name} at site {site}: {why}");
            Looked::Wrong(Trouble::refused(TroubleKind::Unusable, message))
        })?;
    }
    recorded(found, &head, &name).map_err(|trouble| Looked::Wrong(*trouble))
}

/// Names the environment's file by its address on the web, if the site's configuration says it, and returns what is
/// written above the description then.
fn put_on_web(found: &mut Environment, site: &str, kadeploy: &KadeployConfig) -> Result<String, String> {
    let file = &mut found.image.file;
    let web = kadeploy.on_web(file).map_err(|why| {
        format!(
            "sites.{site}.kadeploy.files cannot say where image.file {file:?} is on the web, for {why}: put the file \
             on a web server or a claim, and name it with http or claim in spec.source.environment, without digest \
             beside them"
        )
    })?;
    let Some(web) = web else { return Ok(String::new()) };
    // plain names: it is one line
    let was = std::mem::replace(file, web);
    Ok(format!("# image.file was {was}; sites.{site}.kadeploy.files says where that is on the web\n"))
}

/// The account in a Secret.
async fn own(secret: &str, namespace: &str, view: &dyn ClusterView) -> Result<Credentials, Looked> {
    let read = account::read(view, namespace, secret).await;
    let read = read.map_err(|error| Looked::Silent(format!("Secret {secret}: {error}")))?;
    let read = read.and_then(|found| account::from_secret(secret, &found));
    read.map_err(|why| Looked::Wrong(Trouble::passing(TroubleKind::LoginMissing, why)))
}

fn recorded(found: Environment, head: &str, name: &EnvironmentName) -> Result<RecordedEnvironment, Box<Trouble>> {
    let refused =
        |why: &str| Box::new(Trouble::refused(TroubleKind::Unusable, format!("the description of {name} {why}")));
    let description = yaml::write(&found).map_err(|error| refused(&error.to_string()))?;
    let description = format!("{head}{description}");
    if description.len() > LONGEST {
        return Err(refused(&format!("is longer than {LONGEST} bytes")));
    }
    Ok(RecordedEnvironment { name: found.name, user: found.user, version: found.version, description })
}

#[cfg(test)]
#[path = "recorded_tests.rs"]
mod tests;
