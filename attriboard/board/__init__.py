"""From records to boards, figures and checks; without torch."""
