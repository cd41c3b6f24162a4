"""From a ledger to what people read: summary.json and one self-contained HTML page."""
