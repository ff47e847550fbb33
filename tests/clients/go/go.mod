module routecause.test/lab

go 1.19
