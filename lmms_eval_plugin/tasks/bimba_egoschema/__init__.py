"""EgoSchema: all 5,031 questions for Kaggle, as for the published 71.14, and the 500 whose answers are public."""
