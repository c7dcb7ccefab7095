"""The exercises of each chapter and their answers: one module for each solutions notebook."""
