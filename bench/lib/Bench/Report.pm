package Bench::Report;

# What came out: the verdict of each row, and the tables, as text, in Markdown and in JSON.

use strict;
use warnings;

use Bench::Stats qw(median compare);
use Exporter 'import';
use JSON::PP ();

our @EXPORT_OK = qw(best judge print_table print_measures print_left_out markdown json);

my $LINE = "%-58s %10s %10s %8s %9s %6s  %-15s %s\n";

# A ratio with as many digits as say something; those far below 1 as a fraction.
sub _ratio {
    my ($ratio) = @_;
    return sprintf '1/%.1f', 1 / $ratio if $ratio < 0.2;
    return sprintf $ratio < 10 ? '%.3f' : '%.1f', $ratio;
}

sub _bar {
    my ($row) = @_;
    my $unit = $row->{unit};
    return defined $row->{most} ? "at most $row->{most}$unit" : '' if defined $unit;
    return 'at most ' . ($row->{most} < 0.1 ? sprintf '1/%.0f', 1 / $row->{most} : sprintf '%.2f', $row->{most})
        if defined $row->{most};
    return defined $row->{least} ? 'at least ' . $row->{least} : '';
}

# Of several settings of one system the best: the one with the least CPU time, or the most
# requests a second. Returns all of them with their medians, the best first.
sub best {
    my ($measures, $results, $figure) = @_;
    my %median = map { $_ => median(map { $_->{$figure} } @{ $results->{$_} }) } @$measures;
    my $sign = $figure eq 'cpu' ? 1 : -1;
    return map { [ $_, $median{$_} ] } sort { $sign * ($median{$a} <=> $median{$b}) } keys %median;
}

sub _figure {
    my ($figure, $value, $unit) = @_;
    return sprintf $value < 1000 ? '%.2f%s' : '%.0f%s', $value, $unit || '' if $figure eq 'value';
    return sprintf $figure eq 'cpu' ? '%.1f us' : '%.0f', $value;
}

# Writes into each row what there is to print: columns, verdict, notes. Returns how many bars
# were not kept. A bar is kept when the bound keeps it; when only the median does, more
# rounds may tell.
sub judge {
    my ($rows, $results) = @_;
    my $missed = 0;
    for my $row (@$rows) {
        my $result = $row->{result};
        if    (!$result)        { _race($row, $results) }
        elsif ($result->{ours}) { _pairs($row, $result) }
        else                    { _single($row, $result) }
        $row->{bar} = _bar($row);
        $missed++ if $row->{verdict} !~ /^(?:pass|)$/ && !$row->{which};
    }
    return $missed;
}

# A figure that is compared with nothing but its bar, if it has one.
sub _single {
    my ($row, $result) = @_;
    my ($most, $bound) = ($row->{most}, $result->{bound});
    $row->{verdict} = $result->{failed} ? 'failed' : !defined $most ? '' : $result->{number} > $most ? 'miss'
        : defined $bound && $bound > $most ? 'open' : 'pass';
    # What a figure that other programs can only have made worse passes, it passes.
    $row->{verdict} = 'noisy' if $result->{disturbed} && defined $most && !$result->{failed}
        && !($result->{disturbed} eq 'worse' && $row->{verdict} eq 'pass');
    $row->{columns} = [ defined $result->{value} ? $result->{value} : '', defined $result->{against} ? $result->{against} : '',
        defined $result->{ratio} ? _ratio($result->{ratio}) : '', defined $bound ? sprintf('%.1f', $bound) . ($row->{unit} || '') : '', '' ];
    $row->{notes} = $result->{notes};
    return;
}

# Two systems, each with the best of its settings.
sub _race {
    my ($row, $results) = @_;
    my ($ours)   = best($row->{ours}, $results, $row->{figure});
    my ($theirs) = best($row->{theirs}, $results, $row->{figure});
    return _compare($row, $results, $ours, $theirs);
}

# Two lists of results that a row has taken itself.
sub _pairs {
    my ($row, $result) = @_;
    my %results = (ours => $result->{ours}, theirs => $result->{theirs});
    $row->{figure} = 'value';
    _compare($row, \%results, map { [ $_, median(map { $_->{value} } @{ $results{$_} }) ] } qw(ours theirs));
    push @{ $row->{notes} }, @{ $result->{notes} || [] };
    return;
}

# Each side is a name in the results and its median.
sub _compare {
    my ($row, $results, $ours, $theirs) = @_;
    my @two = map { $results->{ $_->[0] } } $ours, $theirs;
    my $errors = 0;
    $errors += $_->{errors} for map { @$_ } @two;
    my $found = compare(@two, $row->{figure});
    @$row{qw(best_of_ours best_of_theirs ours_median theirs_median errors)} = (map({ $_->[0] } $ours, $theirs),
        map({ $_->[1] } $ours, $theirs), $errors);
    if (!$found) {
        @$row{qw(columns verdict)} = ([ ('') x 5 ], 'failed');
        return;
    }
    @$row{ keys %$found } = values %$found;

    my $bound = defined $row->{least} ? $found->{low} : $found->{high};
    my ($kept, $near) = map {
        defined $row->{most} ? $_ <= $row->{most} : defined $row->{least} ? $_ >= $row->{least} : 1
    } $bound, $found->{ratio};
    $row->{bound}   = $bound;
    $row->{verdict} = !defined $row->{most} && !defined $row->{least} ? '' : $kept ? 'pass' : $near ? 'open' : 'miss';
    $row->{verdict} = $found->{high} < 1 ? 'cheaper' : $found->{low} > 1 ? 'dearer' : 'undecided' if $row->{which};
    $row->{verdict} = 'noisy' if $found->{spoilt} && $row->{verdict};
    # Answers that failed cost nothing.
    $row->{verdict} = 'errors' if $errors;
    $row->{columns} = [ map({ _figure($row->{figure}, $_->[1], $row->{of}) } $ours, $theirs),
        _ratio($found->{ratio}), _ratio($bound), $found->{pairs} . ($found->{spoilt} ? '!' : '') ];
    my @notes;
    push @notes, sprintf '%d requests failed', $errors if $errors;
    push @notes, sprintf '%d of %d pairs were disturbed by other programs: not to be trusted',
        @$found{qw(disturbed pairs)} if $found->{spoilt};
    $row->{notes} = \@notes;
    return;
}

sub print_table {
    my ($rows) = @_;
    printf $LINE, 'figure', 'module', 'against', 'ratio', '95% bound', 'pairs', 'bar', '';
    print '-' x 132, "\n";
    for my $row (@$rows) {
        printf $LINE, $row->{title}, @{ $row->{columns} }, @$row{qw(bar verdict)};
        print "    $_\n" for @{ $row->{notes} || [] };
        print "    $row->{result}{failed}" if $row->{result} && $row->{result}{failed};
    }
    return;
}

# The median of what a system did, by name.
sub _medians {
    my ($all) = @_;
    my $errors = 0;
    $errors += $_->{errors} for @$all;
    return (
        (map { my $name = $_; $name => median(map { $_->{$name} } @$all) } grep { defined $all->[0]{$_} }
            qw(cpu user system use rps p99 opened taken side_rate)),
        errors => $errors, rounds => scalar @$all, disturbed => scalar grep { $_->{disturbed} } @$all,
    );
}

# What each system did: for information, as the machine decides about these.
sub print_measures {
    my ($measures, $results) = @_;
    return unless @$measures;
    my $line = "%-32s %7s %7s %7s %5s %10s %7s %8s %7s %6s %9s\n";
    print "\nMedians (absolute figures are this machine's, at this time):\n";
    printf $line, 'system/servers/workers/kept', 'CPU us', 'user us', 'sys us', 'use', 'requests/s', 'p99 ms',
        'opened', 'errors', 'times', 'disturbed';
    for my $measure (@$measures) {
        my %of = _medians($results->{$measure});
        printf $line, $measure, (map { sprintf '%.1f', $of{$_} } qw(cpu user system)), (sprintf '%.2f', $of{use}),
            (sprintf '%.0f', $of{rps}), (sprintf '%.1f', $of{p99} / 1000), (sprintf '%.1f%%', 100 * $of{opened}),
            @of{qw(errors rounds disturbed)};
        printf "    %.0f requests a second beside it\n", $of{side_rate} if $of{side_rate};
    }
    return;
}

sub print_left_out {
    my ($left_out, $complaints) = @_;
    print "\nLeft out:\n", map { "  $_->[0]: $_->[1]\n" } @$left_out if @$left_out;
    print "\nSpoilt:\n", map { "  $_\n" } @$complaints if @$complaints;
    return;
}

# The table for README.md.
sub markdown {
    my ($about, $rows, $left_out) = @_;
    my $text = "`$about->{command}`, $about->{date}, $about->{processors} processors ($about->{cpu}), "
        . "nginx $about->{nginx}, load before: $about->{load}.\n\n";
    $text .= "| figure | this module | against | ratio | 95 % bound | bar | |\n|---|---|---|---|---|---|---|\n";
    for my $row (@$rows) {
        my @columns = @{ $row->{columns} };
        (my $title = $row->{title}) =~ s/"([^"]*)"/`$1`/g;
        $text .= '| ' . join(' | ', $title, map({ s/ us$/ µs/r } @columns[ 0 .. 3 ]), @$row{qw(bar verdict)}) . " |\n";
        $text =~ s/ +\|/ |/g;
    }
    $text .= "\nLeft out: " . join('; ', map { "$_->[0] ($_->[1])" } @$left_out) . ".\n" if @$left_out;
    return $text;
}

# Everything, for programs: the rows, and each single result.
sub json {
    my ($about, $rows, $results, $left_out, $complaints) = @_;
    my @known = qw(name title figure ours theirs best_of_ours best_of_theirs ours_median theirs_median
        ratio low high pairs disturbed spoilt errors most least bar verdict notes);
    my @rows = map {
        my $row = $_;
        my %row = map { $_ => $row->{$_} } grep { defined $row->{$_} } @known;
        if (my $result = $row->{result}) { $row{$_} = $result->{$_} for grep { defined $result->{$_} } qw(number value failed) }
        \%row;
    } @$rows;
    return JSON::PP->new->canonical->pretty->encode({
        about    => $about,
        rows     => \@rows,
        measures => { map { $_ => { median => { _medians($results->{$_}) }, results => $results->{$_} } } keys %$results },
        left_out => [ map { { row => $_->[0], why => $_->[1] } } @$left_out ],
        spoilt   => $complaints,
    });
}

1;
