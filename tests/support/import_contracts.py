"""A contract for import-linter: modules import from a list of packages, besides Python's own, and from nothing else."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """``source_modules`` with everything inside them import only from the top-level ``allowed_modules``."""

    type_name = "only"

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        allowed = self.allowed_modules | sys.stdlib_module_names
        importers = {m for name in self.source_modules for m in (name, *graph.find_descendants(name))}
        broken = sorted(
            f"{importer} -> {imported}"
            for importer in importers
            for imported in graph.find_modules_directly_imported_by(importer)
            if imported.partition(".")[0] not in allowed
        )
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line)
