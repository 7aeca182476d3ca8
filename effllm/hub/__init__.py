"""The Hugging Face hub: files of a pinned commit, fetched whole, checked against the hub's digests, and explained.

    repository = Repository("model", "Qwen/Qwen2.5-0.5B", revision)
    repository.fetch([file for file in repository.files() if ...], directory)

`huggingface_hub` names the errors, finds the token and the cache; its downloads are not used, because release 2
deletes a file that did not arrive whole, checks its size alone, and gives up on what a second request would mend.

How long it tries: a request or a read that brings nothing for `HF_HUB_DOWNLOAD_TIMEOUT` seconds (10 unless set) has
failed, and so has a transfer that brings less than 64 KiB in a minute. After seven failures in a row that brought
nothing it gives up; the waits between them grow from 1 s to 32 s, a minute in all. A host that never answered is
given up after three. A `Retry-After` is kept to up to five minutes.
"""
