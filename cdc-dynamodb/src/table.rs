//! A table at the source: its key, its stream, and whether that can be followed.

use aws_sdk_dynamodb::types::{KeyType as Role, ScalarAttributeType, StreamViewType, TableDescription, TableStatus};
use lakehouse_core::error::Problem;
use lakehouse_core::finding::Finding;
use lakehouse_core::schema::{TableName, lake_name};

use crate::client::{Clients, Trouble, problem, trouble};
use crate::config::DynamodbSource;
use crate::items::{ColumnType, DeclaredColumn, ItemSchema, ItemTable, KeyAttribute, KeyType, Mismatch};

/// What is read of a table before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceTable {
    pub(crate) name: String,
    pub(crate) arn: String,
    /// Partition key first, then the sort key.
    pub(crate) key: Vec<KeyAttribute>,
    /// ARN of the stream that is being written now.
    pub(crate) stream: Option<String>,
    pub(crate) view: Option<StreamView>,
    /// Other regions that a global table is in.
    pub(crate) replicas: Vec<String>,
    /// About as many; the service counts every six hours.
    pub(crate) items_estimated: u64,
    pub(crate) bytes_estimated: u64,
}

/// Which images a stream's records carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamView {
    KeysOnly,
    NewImage,
    OldImage,
    NewAndOldImages,
}

impl StreamView {
    fn as_str(self) -> &'static str {
        match self {
            StreamView::KeysOnly => "KEYS_ONLY",
            StreamView::NewImage => "NEW_IMAGE",
            StreamView::OldImage => "OLD_IMAGE",
            StreamView::NewAndOldImages => "NEW_AND_OLD_IMAGES",
        }
    }
}

impl SourceTable {
    pub(crate) async fn describe(clients: &Clients, name: &str) -> Result<Self, Problem> {
        let described = clients.tables.describe_table().table_name(name).send().await;
        let described = described.map_err(|error| problem("dynamodb:DescribeTable", name, trouble(&error)))?;
        let table = described.table.filter(|table| table.table_status != Some(TableStatus::Deleting));
        let missing = || problem("dynamodb:DescribeTable", name, Trouble::Missing("the table is being deleted".into()));
        Self::of(name, &table.ok_or_else(missing)?)
    }

    fn of(name: &str, table: &TableDescription) -> Result<Self, Problem> {
        let unreadable = |what: &str| Trouble::Other(format!("the description of the table {what}"));
        let unreadable = |what: &str| problem("dynamodb:DescribeTable", name, unreadable(what));
        let mut key = Vec::new();
        for wanted in [Role::Hash, Role::Range] {
            let Some(element) = table.key_schema().iter().find(|element| element.key_type == wanted) else { continue };
            let attribute = element.attribute_name();
            let definition = table.attribute_definitions().iter().find(|one| one.attribute_name() == attribute);
            let key_type = match definition.map(|definition| definition.attribute_type()) {
                Some(ScalarAttributeType::S) => KeyType::S,
                Some(ScalarAttributeType::N) => KeyType::N,
                Some(ScalarAttributeType::B) => KeyType::B,
                _ => return Err(unreadable("does not say of what type its key is")),
            };
            key.push(KeyAttribute { name: attribute.to_owned(), key_type });
        }
        if key.is_empty() {
            return Err(unreadable("names no key"));
        }
        let specification = table.stream_specification().filter(|stream| stream.stream_enabled());
        let view = match specification.and_then(|stream| stream.stream_view_type()) {
            Some(StreamViewType::KeysOnly) => Some(StreamView::KeysOnly),
            Some(StreamViewType::NewImage) => Some(StreamView::NewImage),
            Some(StreamViewType::OldImage) => Some(StreamView::OldImage),
            Some(StreamViewType::NewAndOldImages) => Some(StreamView::NewAndOldImages),
            _ => None,
        };
        let arn = table.table_arn().ok_or_else(|| unreadable("has no ARN"))?.to_owned();
        let region = |arn: &str| arn.split(':').nth(3).map(str::to_owned);
        let replicas = table.replicas().iter().filter_map(|replica| replica.region_name().map(str::to_owned));
        let replicas = replicas.filter(|other| Some(other) != region(&arn).as_ref()).collect();
        Ok(Self {
            name: name.to_owned(),
            arn,
            replicas,
            key,
            stream: view.and(table.latest_stream_arn()).map(str::to_owned),
            view,
            items_estimated: table.item_count().and_then(|count| u64::try_from(count).ok()).unwrap_or(0),
            bytes_estimated: table.table_size_bytes().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
        })
    }

    /// The stream that can be followed; without old images there is no history to keep (D1).
    pub(crate) fn followable(&self, history: bool) -> Result<&str, Problem> {
        let enough = match self.view {
            Some(StreamView::NewAndOldImages) => true,
            Some(StreamView::NewImage) => !history,
            _ => false,
        };
        match &self.stream {
            Some(stream) if enough => Ok(stream),
            _ => {
                let found = self.view.map_or("no stream", StreamView::as_str);
                let message = match (self.view, history) {
                    (Some(StreamView::NewImage), true) => {
                        "the stream has NEW_IMAGE and a history is kept, which needs old images too".to_owned()
                    }
                    _ => format!("the table has {found}, the stream must have NEW_AND_OLD_IMAGES"),
                };
                let remedy = format!(
                    "aws dynamodb update-table --table-name {} --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES (a stream that is there must be disabled first)",
                    self.name
                );
                Err(Problem::halt("STREAM_VIEW", &self.name, message, remedy))
            }
        }
    }

    /// What is worth knowing and keeps nothing from starting.
    pub(crate) fn warning(&self) -> Option<Finding> {
        let message = format!(
            "a global table, also in {}: what is written there comes with this region's stream, in its order; the copy and the stream are this region's alone",
            self.replicas.join(", ")
        );
        let fix = "follow it in one region only, and keep that region: another one has a stream of its own";
        (!self.replicas.is_empty()).then(|| Finding::warning("GLOBAL_TABLE", &self.name, message, Some(fix.to_owned())))
    }

    /// What becomes of its items, by the configuration.
    pub(crate) fn items(&self, source: &DynamodbSource) -> Result<ItemSchema, Problem> {
        self.items_with(source, Vec::new())
    }

    /// The same with columns that are inferred, by attribute.
    pub(crate) fn items_with(
        &self,
        source: &DynamodbSource,
        inferred: Vec<(String, ColumnType)>,
    ) -> Result<ItemSchema, Problem> {
        let options = source.options.get(&self.name).cloned().unwrap_or_default();
        let declared = options.columns.iter().map(|(attribute, text)| {
            let column_type = text.parse().map_err(|error| {
                let subject = format!("{}.{attribute}", self.name);
                let remedy = "declare it with a type that deploy/docs/dynamodb.md lists";
                Problem::halt("CONFIG_VALUE", subject, format!("{error}"), remedy)
            });
            Ok(DeclaredColumn {
                attribute: attribute.clone(),
                name: options.column_names.get(attribute).cloned(),
                column_type: column_type?,
                mismatch: options.mismatch.get(attribute).copied().unwrap_or(options.default_mismatch),
            })
        });
        let inferred = inferred.into_iter().map(|(attribute, column_type)| {
            Ok(DeclaredColumn { attribute, name: None, column_type, mismatch: Mismatch::Rest })
        });
        let table = ItemTable {
            source: self.name.clone(),
            mirror: TableName::new(&source.namespace, options.name.clone().unwrap_or_else(|| lake_name(&self.name))),
            key: self.key.clone(),
            expected_key: options.key.clone(),
            declared: declared.chain(inferred).collect::<Result<_, Problem>>()?,
            partition: options.partition.clone(),
            history: options.history.unwrap_or(source.history),
            old_images: self.view == Some(StreamView::NewAndOldImages),
            quarantine_limit: options.quarantine_limit,
        };
        table.schema()
    }

    /// Partition, region and account: what a pipeline's tables have in common.
    pub(crate) fn home(&self) -> String {
        self.arn.split(':').skip(1).take(4).collect::<Vec<_>>().join(":")
    }
}
