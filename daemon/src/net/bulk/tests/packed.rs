//! Blobs of numbers that travel packed.

use gradmesh_compression::planes::Width;

use super::wire::{CHUNK_BYTES, Kind};
use super::*;

/// A header that is no whole number of elements, and f32 of like size.
fn numbers(bytes: usize) -> Bytes {
    let noise = pattern(bytes, 9);
    let numbers = noise[14..].as_chunks::<4>().0;
    let mut blob = noise[..14].to_vec();
    blob.extend(numbers.iter().flat_map(|[a, b, c, _]| [*a, *b, *c, 0x3c]));
    blob.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_arrive_as_they_are_from_memory_and_file_and_where_another_source_continues() {
    let bytes = numbers(3 * MIB + 14);
    let hash = hash_of(&bytes);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let store = Arc::new(BlobStore::new(0));
    let (path, length) = (file.path().to_path_buf(), bytes.len() as u64);
    store.register_file(hash, path, 0, length).unwrap();
    let (_a, on_disk) = peer(store);
    let (_b, in_memory) = peer(claims(hash, bytes.clone()));
    // Ends in the middle of an element.
    let head = (CHUNK_BYTES as u32).to_le_bytes();
    let (dying, _) = rogue(Rogue::Dies {
        total: length,
        sends: [&head[..], &bytes[..1001]].concat().into(),
    });
    for (sources, blamed) in [
        (vec![on_disk], 0),
        (vec![in_memory], 0),
        (vec![dying, in_memory], 1),
    ] {
        for width in [Width::F32, Width::Bf16] {
            let order = Order {
                elements: Some(width),
                deadline: Some(deadline()),
                ..Order::new(hash, Length::Exactly(length), &sources)
            };
            let client = client_with(quic_only());
            let fetched = client.fetch_order(&order).await.unwrap();
            assert_eq!(fetched.bytes, bytes);
            assert_eq!(fetched.report.blamed.len(), blamed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_chunk_on_a_new_connection_is_packed() {
    let bytes = numbers(2 * CHUNK_BYTES + 2);
    let hash = hash_of(&bytes);
    let (_server, source) = peer(claims(hash, bytes.clone()));
    let client = client();
    let (links, inner) = (&client.inner.links, &client.inner);
    let lease = links
        .lease(inner, source.peer, source.addr, 0)
        .await
        .unwrap();
    let (mut send, mut recv) = lease.connection.open_bi().await.unwrap();
    let request = Request {
        kind: Kind::Blob,
        hash,
        offset: 0,
        length: u64::MAX,
        total_max: u64::MAX,
        elements: Some(Width::F32),
    };
    send.write_all(&request.encode()).await.unwrap();
    let mut head = [0; wire::RESPONSE_BYTES + wire::CHUNK_HEAD_BYTES];
    recv.read_exact(&mut head).await.unwrap();
    let packed = u32::from_le_bytes(*head.last_chunk().unwrap()) as usize;
    // A quarter of the bytes is always the same.
    assert!(packed < CHUNK_BYTES * 3 / 4 + 1024, "{packed}");
}
