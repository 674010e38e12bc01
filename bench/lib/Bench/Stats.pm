package Bench::Stats;

# Medians, and what can be said about a ratio from paired rounds.

use strict;
use warnings;

use Exporter 'import';

our @EXPORT_OK = qw(median compare);

# Drawn anew from the rounds so many times; the same each time it runs.
my $RESAMPLES = 4000;
my $SEED      = 20240229;

sub median {
    my @sorted = sort { $a <=> $b } @_ or return;
    my $middle = int @sorted / 2;
    return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# The ratio of two series measured round by round: (median, low, high), where the
# ratio is above low, and below high, each with 95 % confidence. It is taken within
# each round, so that what slows a whole round down does not matter, and bootstrapped,
# so that a few spoilt rounds do not either.
sub compare {
    my ($ours, $theirs) = @_;
    my @logs = map { log $ours->[$_] / $theirs->[$_] }
        grep { $ours->[$_] && $theirs->[$_] } 0 .. ($#$ours < $#$theirs ? $#$ours : $#$theirs);
    return unless @logs;

    srand $SEED;
    my @medians = sort { $a <=> $b } map {
        median(map { $logs[ rand @logs ] } @logs)
    } 1 .. $RESAMPLES;
    return map { exp } median(@logs), $medians[ 0.05 * $RESAMPLES ], $medians[ 0.95 * $RESAMPLES - 1 ];
}

1;
