//! A table at the source: its key, its stream, and whether that can be followed.

use aws_sdk_dynamodb::types::{KeyType, ScalarAttributeType, StreamViewType, TableDescription, TableStatus};
use lakehouse_core::error::Problem;

use crate::client::{Clients, Trouble, problem, trouble};

/// What is read of a table before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    pub name: String,
    pub arn: String,
    /// Partition key first, then the sort key.
    pub key: Vec<KeyAttribute>,
    /// ARN of the stream that is being written now.
    pub stream: Option<String>,
    pub view: Option<StreamView>,
    /// About as many; the service counts every six hours.
    pub items_estimated: u64,
    pub bytes_estimated: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAttribute {
    pub name: String,
    pub kind: KeyKind,
}

/// Types that a key may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    String,
    Number,
    Binary,
}

/// Which images a stream's records carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamView {
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
        for wanted in [KeyType::Hash, KeyType::Range] {
            let Some(element) = table.key_schema().iter().find(|element| element.key_type == wanted) else { continue };
            let attribute = element.attribute_name();
            let definition = table.attribute_definitions().iter().find(|one| one.attribute_name() == attribute);
            let kind = match definition.map(|definition| definition.attribute_type()) {
                Some(ScalarAttributeType::S) => KeyKind::String,
                Some(ScalarAttributeType::N) => KeyKind::Number,
                Some(ScalarAttributeType::B) => KeyKind::Binary,
                _ => return Err(unreadable("does not say of what type its key is")),
            };
            key.push(KeyAttribute { name: attribute.to_owned(), kind });
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
        Ok(Self {
            name: name.to_owned(),
            arn: table.table_arn().ok_or_else(|| unreadable("has no ARN"))?.to_owned(),
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

    /// Partition, region and account: what a pipeline's tables have in common.
    pub(crate) fn home(&self) -> String {
        self.arn.split(':').skip(1).take(4).collect::<Vec<_>>().join(":")
    }
}
