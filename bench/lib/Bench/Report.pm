package Bench::Report;

# The tables that are printed.

use strict;
use warnings;

use Bench::Stats qw(median compare);
use Exporter 'import';

our @EXPORT_OK = qw(print_table print_measures print_left_out);

my $LINE = "%-52s %10s %10s %8s %9s  %-15s %s\n";

# A ratio with as many digits as say something; those far below 1 as a fraction.
sub _ratio {
    my ($ratio) = @_;
    return sprintf '1/%.1f', 1 / $ratio if $ratio < 0.1;
    return sprintf $ratio < 10 ? '%.3f' : '%.1f', $ratio;
}

sub _bar {
    my ($row) = @_;
    my $unit = $row->{unit};
    return "at most $row->{most}$unit" if defined $unit;
    return 'at most ' . ($row->{most} < 0.1 ? sprintf '1/%.0f', 1 / $row->{most} : sprintf '%.2f', $row->{most})
        if defined $row->{most};
    return 'at least ' . $row->{least};
}

# Of several settings of one system the best: the one with the least CPU time, or the
# most requests a second.
sub _best {
    my ($measures, $results, $figure) = @_;
    my %median = map { $_ => median(map { $_->{$figure} } @{ $results->{$_} }) } @$measures;
    my ($best) = sort { $figure eq 'cpu' ? $median{$a} <=> $median{$b} : $median{$b} <=> $median{$a} } @$measures;
    return ($best, $median{$best});
}

sub _figure {
    my ($figure, $value) = @_;
    return sprintf $figure eq 'cpu' ? '%.1f us' : '%.0f', $value;
}

# One line for each row; returns how many bars were not kept. A bar is kept when the
# bound keeps it; when only the median does, more rounds may tell.
sub print_table {
    my ($rows, $results) = @_;
    my $missed = 0;
    printf $LINE, 'figure', 'module', 'against', 'ratio', '95% bound', 'bar', '';
    print '-' x 118, "\n";
    for my $row (@$rows) {
        my ($verdict, @columns);
        if (my $result = $row->{result}) {
            $verdict = $result->{failed} ? 'failed' : $result->{number} <= $row->{most} ? 'pass' : 'miss';
            @columns = (defined $result->{value} ? $result->{value} : '', '', '', '');
        }
        else {
            ($verdict, @columns) = _race($row, $results);
        }
        $missed++ if $verdict ne 'pass';
        printf $LINE, $row->{title}, @columns, _bar($row), $verdict;
        print "    $_\n" for @{ $row->{result}{notes} || [] };
        print "    $row->{result}{failed}" if $row->{result}{failed};
    }
    return $missed;
}

sub _race {
    my ($row, $results) = @_;
    my ($ours, $mine)     = _best($row->{ours}, $results, $row->{figure});
    my ($theirs, $theirs_median) = _best($row->{theirs}, $results, $row->{figure});
    my ($ratio, $low, $high) = compare(
        map { my $measure = $_; [ map { $_->{ $row->{figure} } } @{ $results->{$measure} } ] } $ours, $theirs);
    my $bound = defined $row->{most} ? $high : $low;
    my ($kept, $near) = map { defined $row->{most} ? $_ <= $row->{most} : $_ >= $row->{least} } $bound, $ratio;
    return ($kept ? 'pass' : $near ? 'open' : 'miss',
        _figure($row->{figure}, $mine), _figure($row->{figure}, $theirs_median), _ratio($ratio), _ratio($bound));
}

# What each system did: for information, as the machine decides about these.
sub print_measures {
    my ($measures, $results) = @_;
    return unless @$measures;
    my $line = "%-28s %9s %9s %9s %11s %11s %7s\n";
    print "\nMedians (absolute figures are this machine's, at this time):\n";
    printf $line, 'system/servers/workers/keepalive', 'CPU us', 'user us', 'sys us', 'requests/s', 'p99 ms', 'errors';
    for my $measure (@$measures) {
        my @all = @{ $results->{$measure} };
        my $of = sub { my ($name) = @_; return median(map { $_->{$name} } @all) };
        my $errors = 0;
        $errors += $_->{errors} for @all;
        printf $line, $measure, (map { sprintf '%.1f', $of->($_) } qw(cpu user system)),
            (sprintf '%.0f', $of->('rps')), (sprintf '%.1f', $of->('p99') / 1000), $errors;
        printf "    %.0f requests a second beside it\n", $of->('side_rate') if $all[0]{side_rate};
    }
    return;
}

sub print_left_out {
    my ($left_out, $complaints) = @_;
    print "\nLeft out:\n", map { "  $_->[0]: $_->[1]\n" } @$left_out if @$left_out;
    print "\nSpoilt:\n", map { "  $_\n" } @$complaints if @$complaints;
    return;
}

1;
