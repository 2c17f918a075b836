use proptest::prelude::*;

use super::*;

fn product(sku: &str, name: &str, description: &str) -> Product {
    Product {
        sku: sku.into(),
        name: name.into(),
        description: description.into(),
        category: "Camp Kitchen".into(),
        brand: None,
        price_pence: 995,
        attribution: None,
    }
}

async fn store(products: &[Product]) -> (tempfile::TempDir, CatalogStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = CatalogStore::open(&folder.path().join("catalog.sqlite")).await.unwrap();
    store.save(products).await.unwrap();
    (folder, store)
}

async fn skus(store: &CatalogStore, query: &str) -> Vec<String> {
    let found = store.search(query, "", 1, 50).await.unwrap();
    found.page.items.into_iter().map(|f| f.product.sku).collect()
}

#[tokio::test]
async fn ranks_names_above_descriptions_and_whole_words_above_beginnings() {
    let (_folder, store) = store(&[
        product("A1", "Enamel mug", "Sits beside any stove, on the fire or off it."),
        product("A2", "Gas stove", "Boils a litre in four minutes."),
        product("A3", "Stovetop kettle", "Whistles."),
    ])
    .await;
    assert_eq!(skus(&store, "stove").await, ["A2", "A3", "A1"]);
    assert_eq!(skus(&store, "stoves").await, ["A2", "A3", "A1"], "a plural finds the singular");
    assert_eq!(skus(&store, "sto").await.len(), 3, "half a word is enough");
}

#[tokio::test]
async fn finds_stock_codes_with_letters_whole_first() {
    let (_folder, store) = store(&[
        product("10123", "Wrapping paper", "See also 10123C, the tape, and 10123C again: 10123C."),
        product("10123C", "HEARTS WRAPPING TAPE", ""),
        product("15056BL", "EDWARDIAN PARASOL BLACK", ""),
        product("15056bl", "EDWARDIAN PARASOL BLACK", "lower case"),
    ])
    .await;
    assert_eq!(skus(&store, "10123c").await, ["10123C", "10123"]);
    assert_eq!(skus(&store, "10123").await, ["10123", "10123C"]);
    assert_eq!(skus(&store, "15056bl").await, ["15056bl", "15056BL"]);
    assert_eq!(skus(&store, "15056BL").await, ["15056BL", "15056bl"]);
    assert_eq!(store.get("15056BL").await.unwrap().unwrap().description, "");
    assert_eq!(store.get("10123c").await.unwrap(), None);
}

#[tokio::test]
async fn falls_back_to_any_word_and_says_so() {
    let (_folder, store) =
        store(&[product("A1", "Red kettle", ""), product("A2", "Blue mug", ""), product("A3", "Rake", "")])
            .await;
    let found = store.search("red mug", "", 1, 10).await.unwrap();
    assert!(!found.all_words);
    assert_eq!(found.page.total, 2);
    let nothing = store.search("--- \"", "", 1, 10).await.unwrap();
    assert_eq!((nothing.page.total, nothing.page.pages), (0, 0));
}

#[tokio::test]
async fn shows_what_matched() {
    let (_folder, store) = store(&[product("A1", "Storm kettle", "A kettle with a chimney.")]).await;
    let found = store.search("kettles", "", 1, 10).await.unwrap().page.items.remove(0);
    let matched = |segments: &[Segment]| -> Vec<String> {
        segments.iter().filter(|s| s.is_match).map(|s| s.text.clone()).collect()
    };
    assert_eq!(
        (matched(&found.name), matched(&found.snippet)),
        (vec!["kettle".into()], vec!["kettle".into()])
    );
    let whole: String = found.snippet.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(whole, "A kettle with a chimney.");
}

#[tokio::test]
async fn a_changed_product_is_found_by_its_new_words_only() {
    let (_folder, store) = store(&[product("A1", "Kettle", "")]).await;
    let renamed = [product("A1", "Teapot", "")];
    assert_eq!(store.save(&renamed).await.unwrap(), Saved { updated: 1, ..Saved::default() });
    assert_eq!(store.save(&renamed).await.unwrap(), Saved { unchanged: 1, ..Saved::default() });
    assert_eq!(skus(&store, "kettle").await, [""; 0]);
    assert_eq!(skus(&store, "teapot").await, ["A1"]);
}

#[tokio::test]
async fn pages_cover_every_product_once_in_every_order() {
    let products: Vec<Product> = (0..37)
        .map(|n| Product {
            price_pence: 100 + n % 5,
            category: ["Garden", "Lights"][(n % 2) as usize].into(),
            ..product(&format!("P{n}"), &format!("Thing {}", n % 7), "same words")
        })
        .collect();
    let (_folder, store) = store(&products).await;
    for order in [Order::Name, Order::Cheapest, Order::Dearest] {
        let listing = Listing { category: "Garden".into(), order, ..Listing::default() };
        let mut seen = Vec::new();
        for number in 1..=4 {
            let page = store.list(&listing, number, 5).await.unwrap();
            assert_eq!((page.total, page.pages), (19, 4));
            seen.extend(page.items);
        }
        let mut prices: Vec<u32> = seen.iter().map(|p| p.price_pence).collect();
        if order == Order::Dearest {
            prices.reverse();
        }
        assert!(order == Order::Name || prices.is_sorted());
        let mut skus: Vec<&str> = seen.iter().map(|p| p.sku.as_str()).collect();
        skus.sort_unstable();
        skus.dedup();
        assert_eq!((seen.len(), skus.len()), (19, 19));
    }
    let past = store.list(&Listing::default(), u32::MAX, 100).await.unwrap();
    assert_eq!((past.items.len(), past.total), (0, 37));
}

#[tokio::test]
async fn a_seed_is_loaded_once_and_leaves_later_changes_alone() {
    let (_folder, store) = store(&[]).await;
    store.seed("f", "1", || vec![product("A1", "Kettle", "")]).await.unwrap();
    store.save(&[product("A1", "Teapot", "")]).await.unwrap();
    store.seed("f", "1", || panic!("an unchanged seed is not even read")).await.unwrap();
    assert_eq!(store.get("A1").await.unwrap().unwrap().name, "Teapot");
    store.seed("f", "2", || vec![product("A1", "Urn", "")]).await.unwrap();
    assert_eq!(store.get("A1").await.unwrap().unwrap().name, "Urn");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_search_is_an_error(query in r#"[\PC\x00"'*^()\-: ]{0,40}"#) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_folder, store) = store(&[product("A1", "Kettle", "A kettle: it's \"good\" (really) - * ^")]).await;
            store.search(&query, "", 1, 10).await.unwrap();
        });
    }
}
