//! Validation before a start: every finding with its code and the command that mends it. Writes nothing.

use lakehouse_core::catalog::Catalog;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::finding::Finding;

use crate::client::{Clients, problem};
use crate::config::{CopyRoad, DynamodbSource, OnGap};
use crate::export::{Requester, place};
use crate::lease;
use crate::reader::lister;
use crate::table::SourceTable;

/// Everything that stands between the configuration and a start, names that `catalog` does not take among it. Errors are
/// what makes validation itself impossible.
pub async fn validate(source: &DynamodbSource, catalog: Option<&dyn Catalog>) -> Result<Vec<Finding>, Problem> {
    let clients = Clients::connect(source).await;
    let mut findings = Vec::new();
    match lease::check(source, &clients).await {
        Err(problem) if problem.reaction == Reaction::Retry => return Err(problem),
        checked => findings.extend(checked.err().map(Finding::from)),
    }
    for name in &source.tables {
        match one_table(source, &clients, name, catalog).await {
            Ok(warning) => findings.extend(warning),
            Err(problem) if problem.reaction == Reaction::Retry => return Err(problem),
            Err(problem) => findings.push(problem.into()),
        }
    }
    Ok(findings)
}

async fn one_table(
    source: &DynamodbSource,
    clients: &Clients,
    name: &str,
    catalog: Option<&dyn Catalog>,
) -> Result<Option<Finding>, Problem> {
    let table = SourceTable::describe(clients, name).await?;
    let items = table.items(source)?;
    let stream = table.followable(items.table().history)?;
    catalog.map_or(Ok(()), |catalog| catalog.check_name(&items.table().mirror))?;
    // What the role may not do is better known now than at night (D60).
    let listing = lister(clients, source.pace).list_shards(stream).await;
    listing.map_err(|trouble| problem("dynamodb:DescribeStream", name, trouble))?;
    if source.copy_road(name) == CopyRoad::Export || source.on_gap(name) == OnGap::IncrementalExport {
        Requester { clients, table: &table, place: place(source, name)? }.check().await?;
    }
    let scan = clients.tables.scan().table_name(name).limit(1).send().await;
    scan.map_err(|error| problem("dynamodb:Scan", name, crate::client::trouble(&error)))?;
    Ok(table.warning())
}
