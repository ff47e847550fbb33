"""Lints a chart and renders it with the values on stdin, by helm's own engine, and judges what comes out by the schemas of
Kubernetes' API: python3 chart.py CHART [KUBERNETES...]. Prints the documents as JSON, and what it could not judge."""

import json
import sys

import yaml
from helm_python import chart as helm
from kubernetes_validate import utils

folder, *releases = sys.argv[1:]
values = json.load(sys.stdin)
report = helm.lint(folder, values, strict=True, namespace="egress")
# That there is no icon is no fault.
faults = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
if faults:
    sys.exit(f"lint: {faults}")
with helm.Chart.load(folder) as chart:
    chart.validate_schema(values)
    rendered = chart.render(values, name="gate", namespace="egress")
documents, unknown = [], []
for path, text in sorted(rendered.items()):
    if not path.endswith(".yaml"):
        continue
    for document in yaml.safe_load_all(text):
        if not document:
            continue
        documents.append(document)
        if document["kind"] == "ServiceMonitor":
            unknown.append(document["kind"])
            continue
        for release in releases:
            utils.validate(document, release, strict=True)
notes = next(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
json.dump({"documents": documents, "unknown": unknown, "notes": notes}, sys.stdout)
