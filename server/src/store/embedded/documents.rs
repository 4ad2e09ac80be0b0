//! Documents: `collection 0 key` -> content, in a keyspace of their own. They are few and small.

use std::sync::PoisonError;

use fjall::PersistMode;

use super::EmbeddedStore;
use crate::store::{Document, StoreError};

const END_OF_COLLECTION: u8 = 0;

pub(super) fn read(
    store: &EmbeddedStore,
    collection: &str,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let prefix = key(collection, "");
    store.with_open(|open| {
        let records = open.documents.prefix(&prefix).map(|record| {
            let (key, content) = record.into_inner()?;
            let name = key.get(prefix.len()..).unwrap_or_default();
            Ok((String::from_utf8_lossy(name).into_owned(), content.to_vec()))
        });
        let records: Result<Vec<_>, fjall::Error> = records.collect();
        records.map_err(|err| store.engine_error("read documents", err))
    })
}

pub(super) fn put(store: &EmbeddedStore, documents: &[Document]) -> Result<(), StoreError> {
    let _one_writer = store.commits.lock().unwrap_or_else(PoisonError::into_inner);
    let contents = documents.iter().filter_map(|document| document.content.as_ref());
    store.check_room_for(contents.map(|content| content.len() as u64).sum())?;
    store.with_open(|open| {
        let mut write = open.database.batch().durability(Some(PersistMode::SyncAll));
        for Document { collection, key: name, content } in documents {
            match content {
                Some(content) => {
                    write.insert(&open.documents, key(collection, name), content.as_slice())
                }
                None => write.remove(&open.documents, key(collection, name)),
            }
        }
        write.commit().map_err(|err| store.engine_error("store documents", err))
    })
}

fn key(collection: &str, name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(collection.len() + 1 + name.len());
    key.extend(collection.as_bytes());
    key.push(END_OF_COLLECTION);
    key.extend(name.as_bytes());
    key
}
