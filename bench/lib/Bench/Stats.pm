package Bench::Stats;

# Medians, and what can be said about a ratio from paired rounds.

use strict;
use warnings;

use Exporter 'import';
use POSIX ();

our @EXPORT_OK = qw(median quantile quantile_bound pairs compare);

# Drawn anew from the rounds so many times; the same each time it runs.
my $RESAMPLES = 4000;
my $SEED      = 20240229;

sub median {
    my @sorted = sort { $a <=> $b } @_ or return;
    my $middle = int @sorted / 2;
    return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# The value that a share of all is at most; 1: the largest.
sub quantile {
    my ($share, @values) = @_;
    my @sorted = sort { $a <=> $b } @values or return;
    my $rank = POSIX::ceil($share * @sorted) - 1;
    return $sorted[ $rank < 0 ? 0 : $rank ];
}

# What the quantile of those that these are a sample of stays under with 95 % confidence, by the
# binomial distribution of ranks. The largest, when they are too few to tell.
sub quantile_bound {
    my ($share, @values) = @_;
    my @sorted = sort { $a <=> $b } @values or return;
    my $n = @sorted;
    my $rank = POSIX::ceil($n * $share + 1.645 * sqrt($n * $share * (1 - $share)));
    return $sorted[ $rank > $#sorted ? $#sorted : $rank ];
}

# Pairs up two lists of results (each has the figure, its round and its series, and
# disturbed where another program ran): those of one round with one another in their
# order, or, where one side was measured more often, the medians of the round.
# Returns [ours, theirs, series, disturbed] each.
sub pairs {
    my ($ours, $theirs, $figure) = @_;
    my (%mine, %others);
    push @{ $mine{ $_->{round} } }, $_ for @$ours;
    push @{ $others{ $_->{round} } }, $_ for @$theirs;
    my @pairs;
    for my $round (sort { $a <=> $b } grep { $others{$_} } keys %mine) {
        my @sides = ($mine{$round}, $others{$round});
        @sides = map { [ _middle($_, $figure) ] } @sides if @{ $sides[0] } != @{ $sides[1] };
        for my $i (0 .. $#{ $sides[0] }) {
            my ($our, $their) = map { $_->[$i] } @sides;
            push @pairs, [ $our->{$figure}, $their->{$figure}, "$our->{series} $their->{series}",
                $our->{disturbed} || $their->{disturbed} ];
        }
    }
    return @pairs;
}

# One result in place of several: those disturbed do not count when there are others.
sub _middle {
    my ($results, $figure) = @_;
    my @good = grep { !$_->{disturbed} } @$results;
    my $all_disturbed = !@good;
    @good = @$results if $all_disturbed;
    return { %{ $good[0] }, $figure => median(map { $_->{$figure} } @good), disturbed => $all_disturbed };
}

# The ratio of two series of results: { ratio, low, high, pairs, disturbed }, where the
# ratio is above low, and below high, each with 95 % confidence. It is taken within each
# pair, so that what slows a whole round down does not matter, and bootstrapped, so that
# a few spoilt rounds do not either. What one start of a program happens to be like, its
# luck with memory and caches, is common to all pairs of a series: series are drawn
# first, and pairs from each of them then.
#
# Pairs that another program disturbed do not count while at least half are left.
sub compare {
    my @pairs = grep { $_->[0] && $_->[1] } pairs(@_);
    my @good  = grep { !$_->[3] } @pairs;
    my $disturbed = @pairs - @good;
    my $spoilt = @good < @pairs / 2 || !@good;
    @good = @pairs if $spoilt;
    return unless @good;

    my %series;
    push @{ $series{ $_->[2] } }, log($_->[0] / $_->[1]) for @good;
    my @series = map { $series{$_} } sort keys %series;
    my $count  = @good;
    srand $SEED;
    my @medians = sort { $a <=> $b } map {
        median(map { my $one = $series[ rand @series ]; map { $one->[ rand @$one ] } @$one } @series)
    } 1 .. $RESAMPLES;
    return {
        ratio => exp(median(map { @$_ } @series)),
        low   => exp($medians[ 0.05 * $RESAMPLES ]),
        high  => exp($medians[ 0.95 * $RESAMPLES - 1 ]),
        pairs => $count, disturbed => $disturbed, spoilt => $spoilt ? 1 : 0,
    };
}

1;
